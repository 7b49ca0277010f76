"""`memfit serve demo` as its clients have it: one real server, spoken with over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import psutil
import pytest

from conftest import run_memfit

pytestmark = pytest.mark.engine

_SECONDS = 60.0
_KEY = "sk-never-in-a-log"
_SECRET = "zanzibarsecret"
# Its answer has no near ties: whether a prompt lies in the cache moves rounding, and so those.
_PROMPT = "Repeat after me: one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_USER = {"role": "user", "content": _PROMPT}
_QUICK = {"messages": [_USER], "max_tokens": 4, "temperature": 0}
_ENDLESS = {"messages": [_USER], "ignore_eos": True, "stream": True}


@dataclass
class _Server:
    process: subprocess.Popen[str]
    url: str
    log: list[str]

    @property
    def worker(self) -> psutil.Process:
        """Its only child, once there is one."""
        (found,) = _soon(lambda: psutil.Process(self.process.pid).children(recursive=True))
        assert isinstance(found, psutil.Process)
        return found

    def client(self, key: str = _KEY) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=_SECONDS)


def _soon(look: Callable[[], Any]) -> Any:
    """What it finds, once it finds something."""
    ends = time.monotonic() + _SECONDS
    while not (found := look()):
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)
    return found


@contextmanager
def _serving(*options: str, waits: bool = True) -> Iterator[_Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", "memfit", "serve", "demo", "--port", "0", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "500"},
    )
    log: list[str] = []
    assert process.stderr
    stderr = process.stderr
    reading = threading.Thread(target=lambda: log.extend(iter(stderr.readline, "")))
    reading.start()
    try:
        port = _soon(lambda: process.poll() is not None or re.search(r"listen on \S+:(\d+)", "".join(log)))
        assert port is not True, "".join(log)
        server = _Server(process, f"http://127.0.0.1:{port[1]}", log)
        if waits:
            with server.client() as client:
                _soon(lambda: _is_ready(client))
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reading.join()
        stderr.close()


def _is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    with _serving("--parallel", "4", "--kv-unified", "--ctx", "2048", "--api-key", _KEY) as found:
        yield found


@pytest.fixture
def client(server: _Server) -> Iterator[httpx2.Client]:
    with server.client() as found:
        yield found
        # Whatever a test has done, the next one finds all places free.
        _soon(lambda: not _busy(found))


def _busy(client: httpx2.Client) -> int:
    return sum(one["is_processing"] for one in client.get("/slots").json())


def _chat(client: httpx2.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json={**_QUICK, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _text(body: dict[str, Any], choice: int = 0) -> str:
    text: str = body["choices"][choice]["message"]["content"]
    return text


def _events(client: httpx2.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert path != "/v1/chat/completions" or lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_chat_is_the_same_each_time_and_streamed(client: httpx2.Client) -> None:
    body = _chat(client, max_tokens=12)
    assert body["usage"]["completion_tokens"] == 12 and body["choices"][0]["finish_reason"] == "length"
    assert _text(_chat(client, max_tokens=12)) == _text(body)
    events = _events(
        client,
        "/v1/chat/completions",
        {**_QUICK, "max_tokens": 12, "stream": True, "stream_options": {"include_usage": True}},
    )
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    deltas = [one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"]]
    assert "".join(deltas) == _text(body) and events[-1]["usage"]["completion_tokens"] == 12


def test_choices_differ_by_their_seeds_and_stay_the_same_for_one(client: httpx2.Client) -> None:
    body = {"n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 6, "ignore_eos": True}
    found = _chat(client, **body)
    texts = [_text(found, choice) for choice in range(3)]
    assert len(set(texts)) == 3 and found["usage"]["completion_tokens"] == 18
    assert _text(_chat(client, **{**body, "n": 1})) == texts[0]


def test_a_stop_string_ends_the_answer_before_it(client: httpx2.Client) -> None:
    whole = _text(_chat(client, max_tokens=20))
    stop = whole.split()[1]
    body = _chat(client, max_tokens=20, stop=[stop, "never"])
    assert _text(body) == whole[: whole.index(stop)] and body["choices"][0]["finish_reason"] == "stop"


def test_logprobs_are_those_of_the_text(client: httpx2.Client) -> None:
    body = _chat(client, logprobs=True, top_logprobs=2)
    content = body["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == _text(body)
    assert all(one["logprob"] == one["top_logprobs"][0]["logprob"] <= 0 for one in content), "it is greedy"
    assert all(len(one["top_logprobs"]) == 2 for one in content)


def test_an_echo_has_the_prompts_probabilities_and_agrees_with_generating_them(client: httpx2.Client) -> None:
    tokens = client.post("/tokenize", json={"content": "The capital of France is"}).json()["tokens"]
    ask = {"temperature": 0, "logprobs": 1, "max_tokens": 2}
    made = client.post("/v1/completions", json={**ask, "prompt": tokens}).json()["choices"][0]
    generated = client.post("/tokenize", json={"content": made["text"]}).json()["tokens"]
    echoed = client.post(
        "/v1/completions", json={**ask, "prompt": tokens + generated, "echo": True, "max_tokens": 0}
    ).json()["choices"][0]
    assert echoed["text"] == "The capital of France is" + made["text"]
    logprobs = echoed["logprobs"]["token_logprobs"]
    assert logprobs[0] == 0 and len(logprobs) == len(tokens) + 2
    assert logprobs[-2:] == pytest.approx(made["logprobs"]["token_logprobs"], abs=0.05)


def test_answers_follow_grammars_and_schemas(client: httpx2.Client) -> None:
    assert _text(_chat(client, grammar='root ::= "left" | "right"', max_tokens=20)) in ("left", "right")
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "maximum": 99},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    described = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    body = _chat(client, response_format=described, max_tokens=80)
    assert body["choices"][0]["finish_reason"] == "stop"
    jsonschema.validate(json.loads(_text(body)), schema)


@pytest.mark.parametrize("grammar", ["root ::= (", "root ::= root", "root ::= nothing", 'start: "a'])
def test_grammars_that_are_none_are_the_clients_fault(client: httpx2.Client, grammar: str) -> None:
    answer = client.post("/v1/chat/completions", json={**_QUICK, "grammar": grammar})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("grammar")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_required_comes(client: httpx2.Client, choice: Any) -> None:
    """The demo's template shows no tools, so they are spelled for it."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    }
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    asked = {
        **_QUICK,
        "tools": [tool],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 100,
    }
    answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert call["function"]["name"] == "weather"
    jsonschema.validate(json.loads(call["function"]["arguments"]), parameters)


def test_a_context_that_is_exceeded_is_told_with_both_numbers(client: httpx2.Client) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 3000}]}
    for body in (long, {**long, "stream": True}):
        answer = client.post("/v1/chat/completions", json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
        assert error["n_prompt_tokens"] > 3000 and error["n_ctx"] == 2048
    kept = _chat(client, messages=[*long["messages"], _USER], truncation="auto")
    assert kept["usage"]["prompt_tokens"] < 100


def test_what_could_never_fit_does_not_reach_the_model(client: httpx2.Client) -> None:
    began = time.monotonic()
    for messages in ([{"role": "user", "content": "word " * 2_000_000}], [_USER] * 60_000):
        answer = client.post("/v1/chat/completions", json={"messages": messages})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert time.monotonic() - began < 30


def test_a_long_text_has_the_tokens_of_its_parts(client: httpx2.Client) -> None:
    def tokens(text: str) -> list[int]:
        found: list[int] = client.post("/tokenize", json={"content": text}).json()["tokens"]
        return found

    parts = [
        "".join(f"<|im_start|>user\n {at} é{'x' * (turn % 90)}<|im_end|>\n " for turn in range(60))
        for at in range(15)
    ]
    text = "".join(parts)
    whole = tokens(text)
    assert len(text) > 2 * 16 * 1024 > 4 * len(parts[0]), "the parts are short, the whole is not"
    assert whole == [token for part in parts for token in tokens(part)]
    assert client.post("/detokenize", json={"tokens": whole}).json()["content"] == text


def test_a_templates_values_do_not_replace_the_request(client: httpx2.Client) -> None:
    values = {
        "messages": [{"role": "user", "content": _SECRET}],
        "add_generation_prompt": False,
        "bos_token": "x",
    }
    ask = {"messages": [_USER]}
    plain = client.post("/apply-template", json=ask).json()
    assert client.post("/apply-template", json={**ask, "chat_template_kwargs": values}).json() == plain
    assert _USER["content"] in plain["prompt"] and plain["prompt"].endswith("assistant\n")


@pytest.mark.parametrize(
    "body",
    [
        *({"temperature": 1e308}, {"temperature": 100}, {"top_p": 1e-30}, {"seed": -1}, {"seed": 2**62}),
        *({"max_tokens": 2**62, "stop": ["e", "a"]}, {"stop": ["y" * 4096] * 256}, {"n": 129}),
        {"logit_bias": {str(token): -1 for token in range(49_000)}},
        {"logit_bias": {"999999": 1}},
        {"dry_multiplier": 1, "dry_sequence_breakers": ["x" * 4000] * 256},
        {"mirostat": 2, "mirostat_tau": 0},
        {"messages": [{"role": "user", "content": "\0"}], "stop": ["\0"]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [_USER, {"role": "assistant", "content": ""}]},
        {"messages": [_USER, {"role": "assistant", "content": "Hello"}]},
        {"chat_template_kwargs": {"raise_exception": 1, "": 2, "loop": 3, "range": 4}},
        {"tools": [{"type": "function", "function": {"name": f"f{number}"}} for number in range(512)]},
        {"grammar": "start: /((a{1,1000}){1,1000}){1,1000}/"},
        {"grammar": "root ::= " + " | ".join(f'"a{number}"' for number in range(20_000))},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"enum": list(range(20_000))}},
            }
        },
        {"top_logprobs": 1000, "logprobs": True},
    ],
    ids=lambda body: "-".join(body)[:40],
)
def test_what_is_odd_is_answered_or_refused(client: httpx2.Client, body: dict[str, Any]) -> None:
    answer = client.post("/v1/chat/completions", json={**_QUICK, **body})
    assert answer.status_code in (200, 400), answer.text


def test_half_characters_are_refused_whatever_the_path(client: httpx2.Client) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/completion", "/tokenize", "/v1/messages"):
        answer = client.post(path, content=b'{"content":"\\ud800","prompt":"\\ud800"}')
        assert answer.status_code == 400 and "half of a character" in answer.text


def test_a_client_that_leaves_frees_its_place_at_the_next_pass(
    client: httpx2.Client, server: _Server
) -> None:
    with client.stream("POST", "/v1/chat/completions", json=_ENDLESS) as answer:
        lines = answer.iter_lines()  # which ends the call when nobody holds it
        next(lines)
        assert _busy_elsewhere(server) == 1
    began = time.monotonic()
    _soon(lambda: _busy_elsewhere(server) == 0)
    assert time.monotonic() - began < 5


def _busy_elsewhere(server: _Server) -> int:
    """Over a connection of its own."""
    with server.client() as client:
        return _busy(client)


def test_a_client_that_leaves_before_its_answer_frees_its_place(
    server: _Server, client: httpx2.Client
) -> None:
    body = json.dumps({**_ENDLESS, "stream": False, "messages": [_USER]}).encode()
    with closing(_connected(server)) as connection:
        connection.sendall(_request(body))
        _soon(lambda: _busy_elsewhere(server) == 1)
    _soon(lambda: _busy_elsewhere(server) == 0)


def _connected(server: _Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.settimeout(_SECONDS)
    return connection


def _request(body: bytes, headers: str = "", path: str = "/v1/chat/completions") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {_KEY}\r\n{headers}"
    length = "" if "chunked" in headers else f"Content-Length: {len(body)}\r\n"
    return f"{head}{length}\r\n".encode() + body


def test_http_as_odd_clients_speak_it(server: _Server) -> None:
    body = json.dumps(_QUICK).encode()
    chunked = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    close = "Connection: close\r\n"
    expected: list[tuple[bytes, list[bytes]]] = [
        (_request(body, close), [b"200"]),
        (_request(body).replace(b"HTTP/1.1", b"HTTP/1.0"), [b"200"]),
        (_request(chunked, close + "Transfer-Encoding: chunked\r\n"), [b"200"]),
        (_request(body) + _request(body, close), [b"200", b"200"]),
        (_request(body, close + "Expect: 100-continue\r\n"), [b"100", b"200"]),
        (_request(body, close + "Content-Type: text/plain\r\n"), [b"200"]),
        (_request(body, close + "Content-Encoding: gzip\r\n"), [b"200"]),
        (_request(body, close).replace(b"Content-Length: ", b"Content-Length: x"), [b"400"]),
        (_request(body, close).replace(b"Content-Length: ", b"Content-Length: -"), [b"400"]),
        (_request(chunked, close + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), [b"400"]),
        (_request(b"zz\r\n", close + "Transfer-Encoding: chunked\r\n"), [b"400"]),
        (_request(b"{}", close).replace(b"Content-Length: 2", b"Content-Length: 104857600"), [b"413"]),
        (_request(body, close).replace(b"Host: localhost", b"Host: evil.example"), [b"403"]),
        (_request(body, close + "Origin: http://evil.example\r\n"), [b"403"]),
        (_request(body, close + "Origin: http://[\r\n"), [b"403"]),
        (_request(body, close).replace(_KEY.encode(), b"\xff\xfe"), [b"401"]),
        (_request(body, close + f"X: {'x' * 70_000}\r\n"), [b"431"]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", [b"400"]),
        (b"HEAD /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", [b"200"]),
    ]
    for sent, statuses in expected:
        with closing(_connected(server)) as connection:
            connection.sendall(sent)
            received = b"".join(iter(lambda connection=connection: connection.recv(65536), b""))  # type: ignore[misc]
        assert re.findall(rb"HTTP/1\.1 (\d+)", received) == statuses, (sent[:300], received[:300])


def test_a_call_of_many_answers_leaves_others_their_turn(server: _Server, client: httpx2.Client) -> None:
    many = {"prompt": "a", "n": 128, "max_tokens": 8, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=many) as answer:
        lines = answer.iter_lines()  # which ends the call when nobody holds it
        next(lines)
        with server.client() as other:
            assert _text(_chat(other))
        assert _busy_elsewhere(server), "most of the many are still to come"


def test_a_killed_worker_fails_what_ran_and_the_server_answers_again(
    server: _Server, client: httpx2.Client
) -> None:
    before = _text(_chat(client))
    worker = server.worker
    found: list[int] = []

    def ask() -> None:
        with server.client() as other:
            body = {**_ENDLESS, "stream": False}
            found.append(other.post("/v1/chat/completions", json=body).status_code)

    with client.stream("POST", "/v1/chat/completions", json=_ENDLESS) as answer:
        lines = answer.iter_lines()
        next(lines)
        asking = threading.Thread(target=ask)
        asking.start()
        _soon(lambda: _busy_elsewhere(server) == 2)
        worker.kill()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    asking.join()
    assert events[-1] == "[DONE]" and json.loads(events[-2])["error"]["type"] == "server_error"
    assert found == [500]
    assert _text(_chat(client)) == before, "it waits for the next worker"
    assert server.worker.pid != worker.pid and not worker.is_running()
    assert client.get("/plan").json()["restarts"] == 1


def test_the_server_shows_what_it_has(client: httpx2.Client, server: _Server) -> None:
    assert client.get("/v1/models").json()["data"][0]["meta"]["n_ctx"] == 2048
    assert len(client.get("/slots").json()) == client.get("/props").json()["total_slots"] == 4
    assert "llamacpp:tokens_predicted_total" in client.get("/metrics").text
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/chat/completions").status_code == 405
    with server.client(key="wrong") as stranger:
        assert stranger.post("/v1/chat/completions", json=_QUICK).status_code == 401
        assert stranger.get("/health").status_code == 200


def test_neither_prompts_nor_keys_are_in_the_log(client: httpx2.Client, server: _Server) -> None:
    for path, body in (
        ("/v1/chat/completions", {**_QUICK, "messages": [{"role": "user", "content": _SECRET}]}),
        ("/v1/chat/completions", {**_QUICK, "grammar": _SECRET}),
        ("/v1/completions", {"prompt": _SECRET * 3000}),
        ("/completion", {"prompt": _SECRET, "n_predict": 2, "stream": True}),
        ("/tokenize", {"content": _SECRET}),
    ):
        assert client.post(path, json=body).status_code < 500
    with server.client(key=_KEY + "x") as stranger:
        stranger.get("/props")
    log = "".join(server.log)
    assert "ready" in log and _SECRET not in log and _KEY not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_though_an_answer_runs_and_leaves_no_process(number: signal.Signals) -> None:
    """Sent to all its processes, as terminals and service managers do."""
    with _serving("--ctx", "2048") as server:
        worker = server.worker
        with (
            server.client(key="") as client,
            client.stream("POST", "/v1/chat/completions", json=_ENDLESS) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            worker.send_signal(number)
            server.process.send_signal(number)
            told = [line for line in lines if line]
        assert any('"message":"the server is ending"' in line for line in told[-2:]), told[-2:]
        code = server.process.wait(timeout=30)
        assert code in (-number, 128 + number)
        assert not worker.is_running() and "Traceback" not in "".join(server.log)


def test_a_template_that_cannot_be_read_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken.jinja").write_text("{% for %}")
    found = run_memfit(
        "serve", "demo", "--ctx", "512", "--port", "0", "--chat-template-file", str(tmp_path / "broken.jinja")
    )
    assert found.code == 4 and "the chat template cannot be read: Expected" in found.err


def test_a_signal_ends_it_while_it_loads() -> None:
    with _serving("--ctx", "2048", waits=False) as server:
        server.process.terminate()
        assert server.process.wait(timeout=30) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        assert "Traceback" not in "".join(server.log)


def test_a_port_that_is_taken_is_a_clear_error(server: _Server) -> None:
    port = server.url.rpartition(":")[2]
    found = run_memfit("serve", "demo", "--ctx", "512", "--port", port)
    assert (
        found.code == 2 and f"cannot listen on 127.0.0.1 port {port}" in found.err and "--port" in found.err
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "--api-key KEY, or --insecure"),
        (("--host", "0.0.0.0", "--api-key", ""), "--api-key is empty"),
        (("--port", "70000"), "between 0 and 65535"),
    ],
)
def test_what_would_be_unsafe_is_refused_at_once(options: tuple[str, ...], said: str) -> None:
    found = run_memfit("serve", "demo", *options)
    assert found.code == 2 and said in found.err
