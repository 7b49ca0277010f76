"""One field of a request's JSON: what is wrong is refused by the field's path, `body.messages[0].role`.

Every refusal carries field, got and needed. Knows nothing of what the fields mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from math import inf
from typing import Any

from memfit.errors import UsageError
from memfit.strict_json import refusal, shown

__all__ = [
    "field_name",
    "read_boolean",
    "read_flag",
    "read_integer",
    "read_list",
    "read_number",
    "read_object",
    "read_optional_text",
    "read_text",
    "require_harmless",
    "require_known",
]

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_LIMIT = 2**63


def read_integer(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _LIMIT:
        raise refusal(path, value, "a whole number")
    return value


def read_number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusal(path, value, "a number")
    if abs(value) == inf:  # 1e999 is JSON, and becomes that
        raise UsageError(f"{path}: got a number beyond all bounds, needed a number", field=path)
    if abs(value) >= _LIMIT:
        raise refusal(path, value, "a number")
    return float(value)


def read_object(value: Any, path: str, needed: str = "an object") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise refusal(path, value, needed)
    return value


def read_list(value: Any, path: str, needed: str = "a list") -> list[Any]:
    if not isinstance(value, list):
        raise refusal(path, value, needed)
    return value


def read_text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise refusal(path, value, "a text")
    return value


def read_boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise refusal(path, value, "true or false")
    return value


def read_flag(body: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """A field of a whole body's; null is as left out."""
    return default if body.get(name) is None else read_boolean(body[name], name)


def read_optional_text(body: Mapping[str, Any], name: str, prefix: str = "") -> str | None:
    """`prefix` stands before the name in errors."""
    return None if body.get(name) is None else read_text(body[name], prefix + name)


def require_known(value: Mapping[str, Any], known: Set[str], path: str) -> None:
    """Refuse a field that is not among the `known`; clients write null for what they leave out."""
    for name in value:
        if name not in known and value[name] is not None:
            raise _unknown(f"{path}.{field_name(name)}")


def require_harmless(prefix: str, name: str, value: Any, known: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse a field that asks for something: `known` has the values of each that ask for nothing."""
    path = f"{prefix}{field_name(name)}"
    if name not in known:
        raise _unknown(path)
    if value is not None and not any(_same(value, allowed) for allowed in known[name]):
        only = " or ".join(json.dumps(allowed) for allowed in (*known[name], None))
        raise UsageError(
            f"{path}: {shown(value)} is not supported, only {only}; leave it out",
            field=path,
            got=shown(value),
            needed=only,
        )


def field_name(name: str) -> str:
    """A stranger's field name as it stands where it is a word."""
    return name if _WORD.fullmatch(name) else shown(name)


def _unknown(path: str) -> UsageError:
    return UsageError(f"{path} is not a field that memfit knows", field=path)


def _same(value: Any, allowed: Any) -> bool:
    return bool(value == allowed) and isinstance(value, bool) == isinstance(allowed, bool)
