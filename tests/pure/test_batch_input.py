"""A batch's input file: what one scan finds, and the lines in order."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memfit.batch.input import Input, Lengths, open_input
from memfit.batch.lines import LINE_LIMIT_BYTES, Line, LineError
from memfit.engines.protocol import Sampling
from memfit.errors import UsageError


def _written(folder: Path, content: bytes) -> str:
    path = folder / "in.jsonl"
    path.write_bytes(content)
    return str(path)


def _plain(prompt: str, **fields: Any) -> bytes:
    return json.dumps({"prompt": prompt, **fields}).encode()


def _prompts(source: Input, skip: Any = frozenset()) -> list[tuple[int, str]]:
    """Number and prompt, or what is wrong."""
    return [
        (item.number, str(item) if isinstance(item, LineError) else item.request.messages[0]["content"])
        for item in source.items(skip)
    ]


def test_what_a_scan_finds(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + b"\r\n".join(
        (_plain("one"), b"", _plain("zwölf", max_tokens=10), b" \t", b"{", _plain("3", max_tokens=30))
    )
    with open_input(_written(tmp_path, content), Sampling()) as source:
        assert (source.count, source.last_number) == (4, 6)
        assert list(source.blank_numbers) == [2, 4]
        assert source.sha256 == hashlib.sha256(content).hexdigest()
        assert source.path == tmp_path / "in.jsonl"
        assert source.lengths == Lengths(
            count=3,
            mean_prompt_bytes=(3 + 6 + 1) / 3,
            largest_prompt_bytes=6,
            with_max_tokens=2,
            mean_max_tokens=20.0,
            largest_max_tokens=30,
        )
        broken = (
            "cannot read the line: Expecting property name enclosed in double quotes at column 2 (char 1)"
        )
        assert _prompts(source) == [(1, "one"), (3, "zwölf"), (5, broken), (6, "3")]
        assert _prompts(source, {1, 5}) == [(3, "zwölf"), (6, "3")]  # a second time


def test_lengths_of_every_form(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "12345"},
        {"role": "user", "content": [{"type": "text", "text": "é"}]},
    ]
    values: list[Mapping[str, Any]] = [
        {"url": "/v1/chat/completions", "body": {"messages": messages, "max_completion_tokens": 4}},
        {"url": "/v1/completions", "body": {"prompt": ["123"]}},
        {"body": 1},
    ]
    content = b"\n".join(json.dumps(value).encode() for value in values)
    with open_input(_written(tmp_path, content), Sampling()) as source:
        found = source.lengths
    assert (found.count, found.mean_prompt_bytes, found.largest_prompt_bytes) == (2, 5.0, 7)
    assert (found.with_max_tokens, found.mean_max_tokens, found.largest_max_tokens) == (1, 4.0, 4)


def test_a_sample_has_the_first_and_the_longest(tmp_path: Path) -> None:
    content = b"\n".join((b"{", _plain("1"), _plain("22"), _plain("4444"), _plain("333")))
    with open_input(_written(tmp_path, content), Sampling()) as source:
        assert [one.number for one in source.sample(3)] == [2, 3, 4]
        assert [one.number for one in source.sample(9)] == [2, 3, 4, 5]
    with open_input(_written(tmp_path, b"{"), Sampling()) as source:
        assert source.sample(3) == []


def test_nothing_known_about_lengths(tmp_path: Path) -> None:
    with open_input(_written(tmp_path, b"{"), Sampling()) as source:
        assert source.lengths == Lengths(
            count=0,
            mean_prompt_bytes=0.0,
            largest_prompt_bytes=0,
            with_max_tokens=0,
            mean_max_tokens=None,
            largest_max_tokens=None,
        )


def test_options_reach_the_lines(tmp_path: Path) -> None:
    path = _written(tmp_path, _plain("a", top_k=3))
    with open_input(path, Sampling(seed=5), raw=True, schema={"type": "object"}) as source:
        [line] = source.items()
    assert isinstance(line, Line)
    assert line.request.prompt == "a"
    assert line.request.sampling == Sampling(seed=5, top_k=3)
    assert line.request.schema == {"type": "object"}


def test_an_id_that_is_there_twice(tmp_path: Path) -> None:
    lines = [
        _plain("a", id="x"),
        _plain("b", id="y"),
        _plain("c", custom_id="x"),
        b"{",
        _plain("d", id="x"),
        _plain("e", id="line-7"),
        _plain("f"),
    ]
    with open_input(_written(tmp_path, b"\n".join(lines)), Sampling()) as source:
        found = [item for item in source.items() if isinstance(item, LineError) and item.custom_id]
    assert [(error.number, error.custom_id, str(error)) for error in found] == [
        (3, "x", 'custom_id "x" is there twice, first in line 1'),
        (5, "x", 'custom_id "x" is there twice, first in line 1'),
        (7, "line-7", 'custom_id "line-7" is there twice, first in line 6'),
    ]


def test_ids_with_the_same_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memfit.batch.input.hash", len, raising=False)
    content = b"\n".join((_plain("a", id="ab"), _plain("b", id="cd"), _plain("c", id="ab")))
    with open_input(_written(tmp_path, content), Sampling()) as source:
        assert _prompts(source)[:2] == [(1, "a"), (2, "b")]
        assert _prompts(source)[2] == (3, 'custom_id "ab" is there twice, first in line 1')


def test_a_line_without_end(tmp_path: Path) -> None:
    longest = _plain("x" * (LINE_LIMIT_BYTES - len(_plain(""))))
    assert len(longest) == LINE_LIMIT_BYTES
    for end in (b"\n", b"\r\n"):
        content = end.join((longest, longest + b" ", b" " * 3 * LINE_LIMIT_BYTES + b"{}", _plain("last")))
        with open_input(_written(tmp_path, content), Sampling()) as source:
            assert source.count == 4
            assert source.sha256 == hashlib.sha256(content).hexdigest()
            first, second, third, last = source.items()
        assert isinstance(first, Line)
        assert str(second) == str(third) == "the line is longer than 16.00 MiB"
        assert isinstance(last, Line)


def test_standard_input_is_kept() -> None:
    content = _plain("a") + b"\n" + _plain("b")
    with open_input("-", Sampling(), stdin=io.BytesIO(content)) as source:
        assert source.path is None
        assert source.sha256 == hashlib.sha256(content).hexdigest()
        assert _prompts(source) == _prompts(source) == [(1, "a"), (2, "b")]


def test_a_pipe_with_a_name(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(_plain("a"),))
    writer.start()
    with open_input(str(pipe), Sampling()) as source:
        assert _prompts(source) == [(1, "a")]
    writer.join()


def test_a_change_is_seen(tmp_path: Path) -> None:
    path = _written(tmp_path, _plain("a") + b"\n" + _plain("b") + b"\n")
    with open_input(path, Sampling()) as source:
        items = source.items()
        next(items)
        with Path(path).open("ab") as file:
            file.write(_plain("c"))
        with pytest.raises(UsageError, match=r"in\.jsonl was changed while it was being worked on"):
            list(items)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf\r\n"])
def test_an_input_without_a_request(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"in\.jsonl holds no request; it needs one JSON object a line"):
        open_input(_written(tmp_path, content), Sampling())


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*/none: No such file or directory"):
        open_input(str(tmp_path / "none"), Sampling())
    with pytest.raises(UsageError, match=r"cannot read .*: it is a folder"):
        open_input(str(tmp_path), Sampling())
    with pytest.raises(UsageError, match="standard input holds no request"):
        open_input("-", Sampling(), stdin=io.BytesIO())


_TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_TEXTS, st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_every_prompt_comes_back(tmp_path: Path, prompts: list[str], end: bytes) -> None:
    content = end.join(json.dumps({"prompt": prompt}, ensure_ascii=False).encode() for prompt in prompts)
    with open_input(_written(tmp_path, content), Sampling()) as source:
        assert [prompt for _, prompt in _prompts(source)] == prompts
        sizes = [len(prompt.encode()) for prompt in prompts]
        assert source.lengths.largest_prompt_bytes == max(sizes)
        assert source.lengths.mean_prompt_bytes == sum(sizes) / len(sizes)
