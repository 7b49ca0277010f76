"""What benchmarks/suites is made of, as far as it needs no server: the adapter, the seed, the table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_SUITES = Path(__file__).resolve().parents[2] / "benchmarks/suites"


@pytest.fixture(autouse=True)
def suites() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_SUITES))
        yield


def _words(*arguments: str) -> list[str]:
    import llama_server_adapter as adapter

    return adapter.for_memfit(dict(adapter.parsed(list(arguments))), "model.gguf")


def test_flags_are_translated() -> None:
    asked = ("--port", "1", "--temp", "0.8", "--ctx-size", "512", "--embedding", "--no-jinja", "-fa", "on")
    said = ["model.gguf", "--port", "1", "--temperature", "0.8", "--ctx", "512", "--embeddings"]
    absent = ["--no-kv-unified", "--no-metrics"]
    assert _words(*asked) == [*said, "--cors", "*", *absent]
    assert _words("--cors-origins", "localhost") == ["model.gguf", "--cors", "localhost", *absent]
    assert _words("--metrics", "--kv-unified") == ["model.gguf", "--metrics", "--kv-unified", "--cors", "*"]
    assert _words("--batch-size", "64", "--ubatch-size", "32")[1:3] == ["--ubatch", "32"]
    assert _words("--host", "127.0.0.1,::1")[1:5] == ["--host", "127.0.0.1", "--host", "::1"]
    assert Path(_words("--chat-template", "llama3")[2]).is_file()
    assert _words("--n-predict", "-1") == _words()


def test_an_unknown_flag_is_named() -> None:
    with pytest.raises(SystemExit, match="--lora"):
        _words("--lora", "x")


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ({"--hf-repo": "ggml-org/models", "--hf-file": "bert-bge-small/ggml-model-f16.gguf"}, "encoder"),
        ({"--hf-repo": "ggml-org/models", "--hf-file": "jina-reranker-v1-tiny-en/x.gguf"}, "reranker"),
        ({"--hf-repo": "ggml-org/test-model-stories260K"}, "causal"),
        ({"--port": "1"}, None),
    ],
)
def test_stand_ins(asked: dict[str, str], model: str | None) -> None:
    import llama_server_adapter as adapter

    assert adapter.model_of(asked) == model


def test_llama_server_keeps_its_flags() -> None:
    import llama_server_adapter as adapter

    asked = ["--port", "1", "--offline", "--hf-repo", "a/b", "--no-slots", "--seed", "3"]
    words = adapter.for_llama_server(asked, "causal", {"causal": "c.gguf", "preset": "p.ini"})
    assert words == ["--model", "c.gguf", "--port", "1", "--no-slots", "--seed", "3"]
    assert adapter.for_llama_server(["--port", "1"], None, {"preset": "p.ini"})[:2] == [
        "--models-preset",
        "p.ini",
    ]


def test_the_list_of_tests() -> None:
    lines = (_SUITES / "llama_server_tests.txt").read_text().splitlines()
    assert len(lines) == len({line.split("\t")[0] for line in lines}) == 224
    assert sum(line.endswith("\tseveral models") for line in lines) == 15


def test_a_seed_repeats() -> None:
    from malformed_requests import attempts

    first, again, other = (list(attempts(seed, 200)) for seed in (20, 20, 21))
    assert first == again != other
    assert len({attempt.kind for attempt in first}) == 10


def test_valid_requests_are_whole() -> None:
    from malformed_requests import BODIES, valid

    *plain, schemed = valid()
    assert b"json_schema" in schemed.pieces[0]
    for attempt, body in zip(plain, BODIES.values(), strict=True):
        head, sent = attempt.pieces[0].split(b"\r\n\r\n", 1)
        assert json.loads(sent) == body
        assert f"Content-Length: {len(sent)}".encode() in head


def test_a_report_counts_what_did_not_run(tmp_path: Path) -> None:
    from results import of_junit

    cases = (
        '<testcase classname="a.b" name="good"/><testcase classname="a.b" name="bad"><failure message="x"/>'
    )
    (tmp_path / "report.xml").write_text(f"<testsuites>{cases}</testcase></testsuites>")
    found = of_junit("suite", tmp_path / "report.xml", 3)
    assert (found.passed, found.total, found.failures) == (1, 3, ("b::bad: failure: x",))
    assert not found.is_whole
    assert of_junit("suite", tmp_path / "none.xml", 3).passed == 0


@pytest.mark.parametrize(
    ("status", "text", "is_proper"),
    [
        (503, '{"error": {"message": "the worker ended"}}', True),
        (500, "Internal Server Error", False),
        (200, 'data: {"choices": []}\n\ndata: [DONE]\n\n', True),
        (200, 'data: {"choices": []}\n\ndata: {"error": {"message": "the worker ended"}}\n\n', True),
        (200, 'data: {"choices": []}\n\n', False),
        (None, "", False),
    ],
)
def test_a_proper_end(status: int | None, text: str, is_proper: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_SUITES.parent))
        import kills

        running: Any = kills.Running(path="/x", status=status, text=text)
        assert (running.problem == "") is is_proper
