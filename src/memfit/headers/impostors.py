"""Tells from a file's first bytes that it is no model, whatever its name says: a web page, a git pointer.

Downloads go wrong in few ways: they bring a page about the file, git's pointer to it, a server's message, an
archive around it, or nothing. Also says what to do. Judges no model.
"""

from __future__ import annotations

import re

from memfit.errors import readable
from memfit.units import format_bytes

__all__ = ["HEAD_BYTES", "impostor"]

_TELLING_ZEROS = 64
HEAD_BYTES = 512  # what has to be read of a file

_AGAIN = "download the file itself"
_MAGIC = (
    (b"\x1f\x8b", "a gzip archive: unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it with zstd -d"),
    (b"\xfd7zXZ\0", "an xz archive: unpack it with xz -d"),
    (b"BZh", "a bzip2 archive: unpack it with bzip2 -d"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it with 7z x"),
    (b"Rar!", "a rar archive: unpack it with unrar x"),
    (b"%PDF", f"a PDF document: {_AGAIN}"),
    # The magic of the formats before GGUF, a number that lies with its last letter first.
    *(
        (magic, "a GGML file from before GGUF, which no engine reads any more: look for the model as GGUF")
        for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")
    ),
    *(
        (magic, "a Python pickle, which can run any program when it is read: look for GGUF or safetensors")
        for magic in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    ),
)
_POINTER = re.compile(rb"version https?://\S+\n(?:.*\n)*?oid sha256:[0-9a-f]{64}\nsize (\d{1,18})\n")
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", re.I | re.S)
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|[A-Za-z]+[ >])")
_ZIPPED_PICKLE = re.compile(rb"/data\.pkl|/version\x03|archive/")


def impostor(head: bytes) -> str | None:
    """What begins with `head`, the file's first HEAD_BYTES or all of it, and what to do; None if unknown.

    As the end of a sentence: "a web page (HTML): download …".
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"GGUF"):
        return "a GGUF file: give it a name that ends in .gguf"
    if head[8:10] in (b'{"', b"{}") and int.from_bytes(head[:8], "little") < 2**32:
        return "a safetensors file: name its folder, which also needs the config.json of the model"
    if head.startswith(b"PK\x03\x04"):
        if _ZIPPED_PICKLE.search(head):
            return "a PyTorch pickle, which can run any program when it is read: look for GGUF or safetensors"
        return "a zip archive: unpack it with unzip"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it with tar -xf"
    if len(head) >= _TELLING_ZEROS and not head.strip(b"\0"):
        return f"only zeros at its start: a download that did not finish; {_AGAIN} again"
    return _text(head)


def _text(head: bytes) -> str | None:
    """Pointers, pages and messages."""
    if pointer := _POINTER.match(head):
        return (
            f"a Git LFS pointer to {format_bytes(int(pointer[1]))} that are not here: run git lfs pull in "
            "its folder, or download the file itself with memfit pull hf:org/repo/FILE"
        )
    if _PAGE.match(head):
        return (
            f"a web page (HTML) in its place: {_AGAIN}, whose address has /resolve/ where the page has "
            "/blob/; one that needs a login takes memfit pull hf:org/repo/FILE and HF_TOKEN"
        )
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A letter may be cut in two by the end of what was read.
        if error.start < len(head) - 3 or len(head) < HEAD_BYTES:
            return None
        text = head[: error.start].decode("utf-8-sig")
    if not text.strip() or not all(letter.isprintable() or letter.isspace() for letter in text):
        return None
    said = readable(" ".join(text.split()), most=100, kept="")
    kind = "JSON" if text.lstrip()[:1] in ("{", "[") else "XML" if _MARKUP.match(head) else "text"
    return f"{kind}, perhaps what a server said instead of the file ({said}): {_AGAIN}"
