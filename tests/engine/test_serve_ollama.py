"""Ollama's paths over real HTTP: chats, lists of models, downloads and deletions."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from conftest import MOST_SECONDS, WAIT_SECONDS
from hub_server import HubServer
from memfit.openai.ollama_models import OLLAMA_VERSION

pytestmark = pytest.mark.engine
# Its answer has no near ties: whether a prompt lies in the cache moves rounding, and so those.
_PROMPT = "Repeat after me: one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_MESSAGES = [{"role": "user", "content": _PROMPT}]
_SHORT = {"num_predict": 8, "temperature": 0}


_MODEL = random.Random(5).randbytes(300_000)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A server whose library is empty at first, and whose hub lies on loopback."""
    folder = tmp_path_factory.mktemp("library")
    command = [sys.executable, "-m", "memfit", "serve", "demo", "--port", "0", "--ctx", "1024"]
    hidden = ("HF_", "HUGGING", "TRANSFORMERS_", "http_", "https_", "all_", "HTTP", "ALL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    with subprocess.Popen(
        [*command, "--alias", "small"],
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder)},
    ) as process:
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
    *parts, last = _lines(client, "/api/chat", model="small", messages=_MESSAGES, options=_SHORT)
    assert [part["done"] for part in parts] == [False] * len(parts)
    assert last["done"] and last["done_reason"] == "length" and last["eval_count"] == 8
    said = "".join(part["message"]["content"] for part in parts)
    body = {"model": "small", "messages": _MESSAGES, "options": _SHORT, "stream": False}
    other = client.post("/api/chat", json={**body, "model": "another"})
    assert other.status_code == 404 and "'another' is not served here" in other.json()["error"]
    whole = client.post("/api/chat", json=body).json()
    assert whole["message"] == {"role": "assistant", "content": said}
    assert whole["model"] == "small" and whole["prompt_eval_count"] == last["prompt_eval_count"]


def test_a_prompt_is_a_chat_unless_it_is_raw(client: httpx2.Client) -> None:
    body = {"model": "small", "prompt": _PROMPT, "options": _SHORT, "stream": False}
    chat = client.post("/api/chat", json={**body, "messages": _MESSAGES}).json()
    assert client.post("/api/generate", json=body).json()["response"] == chat["message"]["content"]
    raw = client.post("/api/generate", json={**body, "raw": True}).json()
    assert raw["prompt_eval_count"] < chat["prompt_eval_count"]
    refused = client.post("/api/generate", json={**body, "suffix": "Bye."})
    assert refused.status_code == 400 and "filling in" in refused.json()["error"]


def test_what_is_wrong_is_told_in_a_text(client: httpx2.Client) -> None:
    wrong = client.post("/api/chat", json={"messages": _MESSAGES, "options": {"top_k": "many"}})
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


def _names(client: httpx2.Client) -> list[str]:
    return [one["name"] for one in client.get("/api/tags").json()["models"]]


def _delete(client: httpx2.Client, name: str) -> httpx2.Response:
    return client.request("DELETE", "/api/delete", json={"model": name})


def test_a_model_is_pulled_listed_and_deleted(client: httpx2.Client, hub: HubServer, demo: str) -> None:
    hub.add_repo("org/m", {"m-Q4_1.gguf": Path(demo), "m-Q8_0.gguf": _MODEL})
    first, *frames, last = _lines(client, "/api/pull", model="hf.co/org/m:Q4_1")
    assert first == {"status": "pulling manifest"} and last == {"status": "success"}
    assert frames.count({"status": "verifying sha256 digest"}) == 1
    told = [frame for frame in frames if "total" in frame]
    size = Path(demo).stat().st_size
    assert told[-1]["completed"] == told[-1]["total"] == size
    assert len({frame["digest"] for frame in told}) == 1
    assert _names(client) == ["small", "hf:org/m/m-Q4_1.gguf"]
    shown = client.post("/api/show", json={"model": "hf:org/m/m-Q4_1.gguf"}).json()
    assert shown["details"]["quantization_level"] == "Q4_1" and shown["details"]["family"] == "llama"
    whole = client.post("/api/pull", json={"name": "huggingface.co/org/m:Q8_0", "stream": False})
    assert (whole.status_code, whole.json()) == (200, {"status": "success"})
    several = _delete(client, "hf.co/org/m")
    assert several.status_code == 400 and "hf:org/m/m-Q8_0.gguf" in several.json()["error"]
    assert _delete(client, "hf.co/org/m:Q4_1").status_code == 200
    assert _delete(client, "hf:org/m/m-Q8_0.gguf").status_code == 200
    assert _names(client) == ["small"]
    assert _delete(client, "hf.co/org/m:Q4_1").json() == {"error": "model 'hf.co/org/m:Q4_1' not found"}


def test_a_repositorys_quantizations_are_listed_and_planned(
    client: httpx2.Client, hub: HubServer, demo: str
) -> None:
    size = Path(demo).stat().st_size
    hub.add_repo("org/several", {"s-Q4_1.gguf": Path(demo), "s-Q8_0.gguf": _MODEL, "mmproj.gguf": b"GGUF"})
    large, small = client.get("/quantizations", params={"model": "hf.co/org/several"}).json()["quantizations"]
    assert large == {
        "label": "Q4_1",
        "name": "Q4_1",
        "model": "hf:org/several/s-Q4_1.gguf",
        "size_bytes": size,
    }
    body = {"model": large["model"], "workload": {"context": 512}}
    other = client.post("/plan", json=body, timeout=MOST_SECONDS).json()
    now = client.get("/plan").json()
    assert other["fits"] and other["context"] == 512
    assert other["tiers"][0]["weights_bytes"] == now["tiers"][0]["weights_bytes"]  # it is the same file
    assert other["tiers"][0]["budget_bytes"] == now["tiers"][0]["budget_bytes"]
    assert other["model"]["loss"]["basis"] == "published" and other["predicted"]
    body["budget"] = {"ram": "150MiB", "disk": False}
    refused = client.post("/plan", json=body, timeout=MOST_SECONDS).json()
    assert not refused["fits"] and refused["needs_bytes"] > refused["budget_bytes"]
    damaged = client.post("/plan", json={"model": small["model"]}, timeout=MOST_SECONDS)
    assert damaged.status_code == 400 and "s-Q8_0.gguf" in damaged.json()["error"]["message"]
    assert sum(sent for path, sent in hub.bytes_sent.items() if "several" in path) < size // 4
    assert "hf:org/several/s-Q4_1.gguf" not in _names(client)


def test_what_is_no_repository_is_told(client: httpx2.Client, hub: HubServer) -> None:
    for name, status, said in (
        ("hf.co/org/none", 404, "org/none"),
        ("llama3.2", 400, "send hf.co/org/repo"),
        ("https://example.org/m.gguf", 400, "send hf.co/org/repo"),
        ("", 400, "send hf.co/org/repo"),
    ):
        refused = client.get("/quantizations", params={"model": name})
        assert refused.status_code == status and said in refused.json()["error"]["message"]
    for model, status in (("hf.co/org/none:Q4_0", 404), ("/etc/passwd", 400), (7, 400)):
        refused = client.post("/plan", json={"model": model})
        assert refused.status_code == status, refused.text
    hub.misbehave("status", 500, path="/api/models/org/ill")
    try:
        failed = client.get("/quantizations", params={"model": "hf.co/org/ill"})
        assert failed.status_code == 400 and "answers: " in failed.json()["error"]["message"]
    finally:
        hub.behave()


def test_what_cannot_be_pulled_is_refused_with_what_to_send(client: httpx2.Client) -> None:
    for name, status, said in (
        ("llama3.2:1b", 400, "send hf.co/org/repo:Q4_K_M"),
        ("org/m", 400, "this one is hf:org/m"),
        ("http://127.0.0.1/m.gguf", 400, "https://"),
        ("hf.co/org/none", 404, "org/none"),
    ):
        for stream in (True, False):
            answer = client.post("/api/pull", json={"model": name, "stream": stream})
            assert answer.status_code == status and said in answer.json()["error"]
    assert client.post("/api/pull", json={}).status_code == 400


def test_the_served_model_stays(client: httpx2.Client) -> None:
    assert client.post("/api/pull", json={"model": "small", "stream": False}).json() == {"status": "success"}
    kept = _delete(client, "small:latest")
    assert kept.status_code == 409 and "is being served" in kept.json()["error"]
    assert _delete(client, "demo").status_code == 404


def test_a_client_that_leaves_ends_its_download(client: httpx2.Client, hub: HubServer) -> None:
    hub.add_repo("org/slow", {"slow-Q4_0.gguf": random.Random(6).randbytes(3_000_000)})
    hub.misbehave("stall", 1_000_000, path="/cdn/*")
    body = {"model": "hf.co/org/slow"}
    try:
        with client.stream("POST", "/api/pull", json=body) as answer:
            lines = answer.iter_lines()  # closed, it would close the stream
            while not json.loads(next(lines)).get("completed"):
                pass
            again = client.post("/api/pull", json=body)
            assert again.status_code == 409 and "already" in again.json()["error"]
    finally:
        hub.behave()
    deadline = time.monotonic() + WAIT_SECONDS
    while (again := client.post("/api/pull", json={**body, "stream": False})).status_code == 409:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert again.json() == {"status": "success"}
    ranges = [one.range for one in hub.requests_of("/cdn/*slow*", "GET")]
    assert ranges[0] is None and ranges[-1] not in (None, "bytes=0-2999999")  # it went on
    assert _delete(client, "hf.co/org/slow").status_code == 200
