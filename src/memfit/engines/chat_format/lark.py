"""Pieces of a Lark grammar in llguidance's dialect: markers, free text up to a marker, JSON of a schema.

What is a control token of the vocabulary can only be written as that token, never as its letters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from memfit.engines.json_schema import check_schema
from memfit.errors import UsageError

__all__ = ["SPACE", "Rules", "literal", "one_of"]

SPACE = "SPACE?"
# One form of JSON, the one in which templates write it.
_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANYTHING = r"/(?s:.*)/"


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def one_of(options: list[str]) -> str:
    return options[0] if len(options) == 1 else "(" + " | ".join(options) + ")"


@dataclass
class Rules:
    """A grammar in the making. `special_tokens`: names of control tokens; with ids where the dialect has no
    way to write the name."""

    special_tokens: Collection[str]
    _lines: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)

    def text(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", "SPACE: /[ \\n]{1,4}/", *self._lines, ""])

    def rule(self, name: str, body: str, attributes: str = "") -> str:
        """The name of a rule with this body; equal bodies share one."""
        key = attributes + body
        if key not in self._names:
            self._names[key] = f"{name}_{len(self._names)}"
            self._lines.append(f"{self._names[key]}{attributes}: {body}")
        return self._names[key]

    def define(self, name: str, body: str) -> None:
        """A rule with a name of its own, so that others may name it before."""
        line = f"{name}: {body}"
        if line not in self._lines:
            self._lines.append(line)

    def marker(self, text: str) -> str:
        """A marker: its control tokens, and the letters between them."""
        text = text.strip()
        pieces = self._pieces(text) if text else []
        return " ".join(piece for piece in pieces if piece)

    def up_to(self, marker: str, *, before: str = "") -> str:
        """Free text, then `before` and a marker."""
        first, *rest = self._pieces(before + marker)
        if first.startswith("<"):
            return " ".join([_ANYTHING, first, *rest])
        return " ".join([self.rule("free", _ANYTHING, f"[suffix={first}]"), *rest])

    def schema(self, schema: Mapping[str, Any]) -> str:
        """A value by its schema; any object where the schema cannot be enforced."""
        try:
            checked: Any = check_schema(schema).schema
        except UsageError:
            checked = {"type": "object"}
        if not isinstance(checked, Mapping):
            checked = {"type": "object"}
        text = json.dumps({**checked, "x-guidance": _JSON_OPTIONS}, ensure_ascii=False)
        return self.rule("json", f"%json {text}")

    def _pieces(self, text: str) -> list[str]:
        """A text as control tokens and literals."""
        if not self.special_tokens:
            return [literal(text)]
        ordered = sorted(self.special_tokens, key=len, reverse=True)
        parts = re.split("(" + "|".join(re.escape(one) for one in ordered) + ")", text)
        return [self._token(part) if part in self.special_tokens else literal(part) for part in parts if part]

    def _token(self, name: str) -> str:
        if isinstance(self.special_tokens, Mapping):
            return f"<[{self.special_tokens[name]}]>"
        if name.startswith("<") and name.endswith(">"):
            return name
        return literal(name)
