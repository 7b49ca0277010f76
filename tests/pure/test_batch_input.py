"""A batch's input file: what one scan finds, and the lines in order."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.batch.input import Input, InputSizes, open_input
from memfit.batch.lines import LINE_LIMIT_BYTES, Line, LineError
from memfit.engines.requests import Sampling
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
        assert source.sizes == InputSizes(
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
        found = source.sizes
    assert (found.count, found.mean_prompt_bytes, found.largest_prompt_bytes) == (2, 5.0, 7)
    assert (found.with_max_tokens, found.mean_max_tokens, found.largest_max_tokens) == (1, 4.0, 4)


def test_a_sample_has_the_first_and_the_longest(tmp_path: Path) -> None:
    content = b"\n".join((b"{", _plain("1"), _plain("22"), _plain("4444"), _plain("333")))
    with open_input(_written(tmp_path, content), Sampling()) as source:
        assert [one.number for one in source.sample(3)] == [2, 3, 4]
        assert [one.number for one in source.sample(9)] == [2, 3, 4, 5]
    with open_input(_written(tmp_path, b"{}"), Sampling()) as source:
        assert source.sample(3) == []


def test_nothing_known_about_lengths(tmp_path: Path) -> None:
    with open_input(_written(tmp_path, b'{"body": 1}'), Sampling()) as source:
        assert source.sizes == InputSizes(
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


# --- What is no JSON lines: one error, before anything else happens ---

_LINES = b"\n".join(_plain(f"Zwölf {number}") for number in range(3)) + b"\n"
_PRETTY = json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=2).encode()
_ZIP = io.BytesIO()
with zipfile.ZipFile(_ZIP, "w") as _archive:
    _archive.writestr("in.jsonl", _LINES)


@pytest.mark.parametrize(
    ("content", "kind", "command"),
    [
        (_LINES.decode().encode("utf-16"), "UTF-16 text", "iconv -f UTF-16 -t UTF-8 "),
        (_LINES.decode().encode("utf-16-le"), "UTF-16 text", "iconv -f UTF-16LE -t UTF-8 "),
        (_LINES.decode().encode("utf-16-be"), "UTF-16 text", "iconv -f UTF-16BE -t UTF-8 "),
        (b"\xfe\xff" + _LINES.decode().encode("utf-16-be"), "UTF-16 text", "iconv -f UTF-16 -t UTF-8 "),
        ("[]".encode("utf-16-le"), "UTF-16 text", "iconv -f UTF-16LE -t UTF-8 "),
        (_LINES.decode().encode("utf-32"), "UTF-32 text", "iconv -f UTF-32 -t UTF-8 "),
        (_LINES.decode().encode("utf-32-be"), "UTF-32 text", "iconv -f UTF-32BE -t UTF-8 "),
        (gzip.compress(_LINES, mtime=0), "compressed by gzip", "gzip -dc "),
        (bz2.compress(_LINES), "compressed by bzip2", "bzip2 -dc "),
        (lzma.compress(_LINES), "compressed by xz", "xz -dc "),
        (_ZIP.getvalue(), "a zip archive", "unzip -p "),
        (b"PAR1\x15\x04\x15" + bytes(99), "a Parquet file", ""),
        (b"\x7fELF\x02\x01\x01" + bytes(99), "a binary file", ""),
        (bytes(10_000), "a binary file", ""),
        (b'[{"prompt": "a"}, {"prompt": "b"}]', "a JSON array", "jq -c '.[]' "),
        (b'\xef\xbb\xbf [{"prompt": "a"}]\r\n\r\n', "a JSON array", "jq -c '.[]' "),
        (b'[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n', "a JSON array", "jq -c '.[]' "),
        (b'[{"prompt": "a"},\n{"prompt": "b"}\n]\n', "a JSON array", "jq -c '.[]' "),
        (_PRETTY, "a JSON array", "jq -c '.[]' "),
        (b"[]", "a JSON array", "jq -c '.[]' "),
        (
            b'{\n"messages": [\n{"role": "user", "content": "a"}\n]\n}\n',
            "JSON over several lines",
            "jq -c . ",
        ),
        (b"prompt,max_tokens\nHello,3\n", "a table", ""),
        (b"prompt\tmax_tokens\nHello\t3\n", "a table", ""),
        (b"<!doctype html>\n<p>a, b</p>\n", "a page of HTML", ""),
    ],
    # Not by bytes, of which some hold the time: pytest's workers have to collect the same names.
    ids=lambda value: value if isinstance(value, str) else "input",
)
@pytest.mark.parametrize("piped", [False, True])
def test_another_kind_of_file_is_one_error(
    tmp_path: Path, content: bytes, kind: str, command: str, piped: bool
) -> None:
    name = "-" if piped else _written(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        open_input(name, Sampling(), stdin=io.BytesIO(content))
    message = str(caught.value)
    assert f" is {kind}" in message
    assert message.startswith("standard input" if piped else name)
    if command:
        shown = command.strip() if piped else command + name
        assert f"; try: {shown} | memfit batch MODEL --input - " in message


@pytest.mark.parametrize(
    "content",
    [
        b'["a"]\n' + _LINES,  # one line is no object
        b"[\n" + _LINES,
        b"{\n" + _LINES,
        b"prompt,max_tokens\n" + _LINES,
        b"a\0b\n" + _LINES,
        _LINES + b"[]\n",
    ],
)
def test_a_file_with_some_bad_lines_is_answered(tmp_path: Path, content: bytes) -> None:
    with open_input(_written(tmp_path, content), Sampling()) as source:
        found = list(source.items())
    assert sum(isinstance(item, LineError) for item in found) == 1
    assert sum(isinstance(item, Line) for item in found) == 3


def test_a_file_without_any_object_says_what_is_wrong_with_its_first_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no request; .* its first line: cannot read the line: "):
        open_input(_written(tmp_path, b"\nHello there\nWho are you?\n"), Sampling())


def test_an_endless_device_fills_no_disk() -> None:
    with pytest.raises(UsageError, match="/dev/zero is a binary file"):
        open_input("/dev/zero", Sampling())


_TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1)


@given(_TEXTS, st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_every_prompt_comes_back(tmp_path: Path, prompts: list[str], end: bytes) -> None:
    content = end.join(json.dumps({"prompt": prompt}, ensure_ascii=False).encode() for prompt in prompts)
    with open_input(_written(tmp_path, content), Sampling()) as source:
        assert [prompt for _, prompt in _prompts(source)] == prompts
        sizes = [len(prompt.encode()) for prompt in prompts]
        assert source.sizes.largest_prompt_bytes == max(sizes)
        assert source.sizes.mean_prompt_bytes == sum(sizes) / len(sizes)
