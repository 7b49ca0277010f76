"""Recognizes an input that is no JSON lines (CSV, an archive, a JSON array), and says what makes lines of
it.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from memfit.errors import UsageError

__all__ = ["END_BYTES", "require_lines", "require_text"]

END_BYTES = 4096  # of the head and of the tail of a file, enough to tell

# How a file begins → what it is, and the command that writes text of it.
_MAGIC = (
    ((b"\xff\xfe\0\0", b"\0\0\xfe\xff"), "UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
    ((b"\xff\xfe", b"\xfe\xff"), "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    (b"\x1f\x8b", "compressed by gzip", "gzip -dc"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "zstd -dc"),
    (b"\xfd7zXZ\0", "compressed by xz", "xz -dc"),
    (b"BZh", "compressed by bzip2", "bzip2 -dc"),
    (b"PK\x03\x04", "a zip archive", "unzip -p"),
    (b"PAR1", "a Parquet file", ""),
    (b"ARROW1", "an Arrow file", ""),
    (b"SQLite format 3\0", "an SQLite database", ""),
    (b"GGUF", "a GGUF model", ""),
)
# Without a mark at its start: where the first four bytes are no NUL, around what JSON begins with.
_WIDE = {
    (True, False, False, False): "UTF-32LE",
    (False, False, False, True): "UTF-32BE",
    (True, False, True, False): "UTF-16LE",
    (False, True, False, True): "UTF-16BE",
}
_FIRST_LETTERS = b'{["\t\r\n '


def require_text(head: bytes, path: Path | None) -> None:
    """Refuse what begins as no UTF-8 text does, before more of it is read; `path` None is standard input.

    Raises:
        UsageError: says what it is, and the command that makes lines of it.
    """
    for magic, kind, command in _MAGIC:
        if head.startswith(magic):
            raise _refusal(path, kind, command)
    wide = _WIDE.get(tuple(byte != 0 for byte in head[:4]))  # type: ignore[arg-type]
    if wide and head.lstrip(b"\0")[:1] in [bytes([letter]) for letter in _FIRST_LETTERS]:
        raise _refusal(path, f"{wide[:6]} text", f"iconv -f {wide} -t UTF-8")
    if head[:2] == b"\0\0":
        raise _refusal(path, "a binary file", "")


def require_lines(head: bytes, tail: bytes, path: Path | None, *, objects: int, problem: str) -> None:
    """Refuse a text of which no line can be answered: `objects` are the lines that hold a JSON object, and
    `problem` is what is wrong with the first line, "" if nothing.

    Raises:
        UsageError: as `require_text`.
    """
    first, last = head.removeprefix(b"\xef\xbb\xbf").strip(), tail.strip()
    alone = first.partition(b"\n")[0].strip(), last.rpartition(b"\n")[2].strip()
    # Of a value that was written over several lines, single ones may well be objects.
    if first.startswith(b"[") and last.endswith(b"]") and not (objects and _is_json(alone[0])):
        raise _refusal(path, "a JSON array", "jq -c '.[]'")
    if alone == (b"{", b"}"):
        raise _refusal(path, "JSON over several lines", "jq -c .")
    if objects:
        return
    if b"\0" in head:
        raise _refusal(path, "a binary file", "")
    if first.startswith(b"<"):
        raise _refusal(path, "a page of HTML or XML", "")
    if first[:1] not in (b"{", b'"') and (b"," in alone[0] or b"\t" in alone[0]):
        raise _refusal(path, "a table, by its first line", "")
    raise UsageError(
        f"{_shown(path)} holds no request; it needs one JSON object a line, and its first line: {problem}"
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _refusal(path: Path | None, kind: str, command: str) -> UsageError:
    named = f"{command} {shlex.quote(str(path))}" if path and command else command
    advice = f"; try: {named} | memfit batch MODEL --input - …" if command else ""
    return UsageError(f"{_shown(path)} is {kind}; batch reads UTF-8 text with one JSON object a line{advice}")


def _shown(path: Path | None) -> str:
    return "standard input" if path is None else str(path)
