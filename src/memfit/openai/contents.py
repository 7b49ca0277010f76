"""Contents made of parts → one text. Every API has types of parts of its own; a text is all that is read.

Knows no API: who reads a part's type says which types hold text, and in which field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from memfit.errors import EngineError, UsageError
from memfit.openai.fields import read_object, read_text, require_known
from memfit.strict_json import refusal, shown

__all__ = ["joined", "read_content", "refuse_part"]

_IMAGES = ("image", "image_url", "input_image")


def read_content(value: Any, path: str, texts: Mapping[str, str], *, strict: bool = False) -> str:
    """A text, or a list of parts: `texts` has the types of those that hold one, and its field. Null is an
    empty text, unless it is `strict`: then parts have no other fields either, and an image is a mistake.

    Raises:
        EngineError, UsageError: as `refuse_part`.
    """
    if isinstance(value, str):
        return value
    if value is None and not strict:
        return ""
    if not isinstance(value, list):
        raise refusal(path, value, f"a text, or a list of parts of type {' or '.join(texts)}")
    return joined(_text(each, f"{path}[{index}]", texts, strict) for index, each in enumerate(value))


def joined(texts: Iterable[str | None]) -> str:
    """As llama.cpp's server and vLLM join parts for templates that know none."""
    return "\n".join(text for text in texts if text)


def _text(value: Any, path: str, texts: Mapping[str, str], strict: bool) -> str:
    part = read_object(value, path, "an object with a type")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in texts:
        refuse_part(kind, path, texts, strict=strict)
    if strict:
        require_known(part, {"type", texts[kind]}, path)
    return read_text(part.get(texts[kind]), f"{path}.{texts[kind]}")


def refuse_part(kind: Any, path: str, known: Mapping[str, Any], *, strict: bool = False) -> NoReturn:
    """A part that cannot be read.

    Raises:
        EngineError: it is an image: nothing is wrong with the request, and another model could read it. Not
            where it is `strict`.
        UsageError: it is anything else.
    """
    if kind in _IMAGES and not strict:
        raise EngineError(
            f"{path}: image input is not supported: this model reads text only", field=f"{path}.type"
        )
    needed = " or ".join(known)
    raise UsageError(
        f"{path}: parts of type {shown(kind)} are not supported; only {needed} is",
        field=f"{path}.type",
        got=shown(kind),
        needed=needed,
    )
