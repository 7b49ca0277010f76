"""Ollama's paths over real HTTP: chats, lists of models, downloads and deletions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from conftest import MOST_SECONDS, WAIT_SECONDS
from memfit.openai.ollama_models import OLLAMA_VERSION

pytestmark = pytest.mark.engine
_HELLO = [{"role": "user", "content": "Say hello."}]
_SHORT = {"num_predict": 8, "temperature": 0}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    command = [sys.executable, "-m", "memfit", "serve", "demo", "--port", "0", "--ctx", "1024"]
    with subprocess.Popen([*command, "--alias", "small"], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            address = next(line.split()[-1] for line in process.stderr if "will listen on" in line)
            with httpx2.Client(base_url=address, timeout=WAIT_SECONDS, trust_env=False) as client:
                yield client
        finally:
            process.terminate()
            process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode in (0, -signal.SIGTERM)


def _lines(client: httpx2.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", path, json=body, timeout=MOST_SECONDS) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.iter_lines()]


def test_a_model_is_loaded_by_a_call_that_asks_nothing(client: httpx2.Client) -> None:
    loaded = client.post("/api/generate", json={"model": "small"}).json()
    assert (loaded["response"], loaded["done"], loaded["done_reason"]) == ("", True, "load")
    unloaded = client.post("/api/chat", json={"model": "small", "messages": [], "keep_alive": 0}).json()
    assert (unloaded["message"]["content"], unloaded["done_reason"]) == ("", "unload")


def test_a_chat_is_a_stream_of_lines_unless_it_is_wanted_whole(client: httpx2.Client) -> None:
    *parts, last = _lines(client, "/api/chat", model="small", messages=_HELLO, options=_SHORT)
    assert [part["done"] for part in parts] == [False] * len(parts)
    assert last["done"] and last["done_reason"] == "length" and last["eval_count"] == 8
    said = "".join(part["message"]["content"] for part in parts)
    body = {"model": "another", "messages": _HELLO, "options": _SHORT, "stream": False}
    whole = client.post("/api/chat", json=body).json()
    assert whole["message"] == {"role": "assistant", "content": said}
    assert whole["model"] == "small" and whole["prompt_eval_count"] == last["prompt_eval_count"]


def test_a_prompt_is_a_chat_unless_it_is_raw(client: httpx2.Client) -> None:
    body = {"model": "small", "prompt": "Say hello.", "options": _SHORT, "stream": False}
    chat = client.post("/api/chat", json={**body, "messages": _HELLO}).json()
    assert client.post("/api/generate", json=body).json()["response"] == chat["message"]["content"]
    raw = client.post("/api/generate", json={**body, "raw": True}).json()
    assert raw["prompt_eval_count"] < chat["prompt_eval_count"]
    refused = client.post("/api/generate", json={**body, "suffix": "Bye."})
    assert refused.status_code == 400 and "filling in" in refused.json()["error"]


def test_what_is_wrong_is_told_in_a_text(client: httpx2.Client) -> None:
    wrong = client.post("/api/chat", json={"messages": _HELLO, "options": {"top_k": "many"}})
    assert wrong.status_code == 400
    assert "options.top_k" in wrong.json()["error"]
    long = client.post("/api/generate", json={"prompt": "word " * 2000, "truncate": False})
    assert long.status_code == 400
    assert "1024" in long.json()["error"]


def test_the_model_is_listed_and_shown(client: httpx2.Client) -> None:
    client.post("/api/generate", json={})
    (listed,) = client.get("/api/tags").json()["models"]
    (running,) = client.get("/api/ps").json()["models"]
    assert listed["name"] == running["model"] == "small"
    assert listed["details"]["quantization_level"] == "Q4_1"
    assert running["context_length"] == 1024 and running["size"] > listed["size"] // 2
    assert len(listed["digest"]) == 64 == len(running["digest"])
    for name in ("small", "small:latest"):
        shown = client.post("/api/show", json={"model": name}).json()
        assert shown["model_info"]["llama.block_count"] == 30
        assert "completion" in shown["capabilities"] and "<|im_start|>" in shown["template"]
    missing = client.post("/api/show", json={"model": "large"})
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'large' not found"})
    assert client.get("/api/version").json() == {"version": OLLAMA_VERSION}


def test_somebody_is_at_home(client: httpx2.Client) -> None:
    assert client.head("/").status_code == 200
    assert client.get("/").text == "memfit is running"
