"""A chat format: the markers that a model writes around its reasoning and its calls, as data.

It knows no template and no text: `analyse_template` finds a template's format, `FormatParser` reads by it,
and `call_grammar` writes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = ["CallKind", "CallSyntax", "ChatFormat", "ReasoningSyntax"]

# json:     an object (or an array of objects) with a name and arguments
# named:    the name outside, the arguments one JSON object
# tagged:   the name and each argument in tags, values as raw text or JSON
# pythonic: a list of calls as Python writes them: [f(a=1), g()]
# braced:   name{key:value}, strings between quote markers, keys bare
# harmony:  messages with a channel and a recipient in their headers
CallKind: TypeAlias = Literal["json", "named", "tagged", "pythonic", "braced", "harmony"]


@dataclass(frozen=True, kw_only=True)
class ReasoningSyntax:
    """The markers around reasoning."""

    start: str  # what opens it
    end: str  # what closes it
    closed_by: tuple[str, ...] = ()  # what closes it too, and is then read as what it is: a call's start


@dataclass(frozen=True, kw_only=True)
class CallSyntax:
    """How calls are written. White space between any two of its parts is free."""

    kind: CallKind
    section_start: str = ""  # before the first call, or before each; empty: there is none
    section_end: str = ""
    start: str = ""  # before each call's name, or its JSON
    name_end: str = ""  # after its name; empty: a name ends at white space or at a marker
    id_start: str = ""  # between a name and its id; the id then ends at `name_end`
    body_start: str = ""  # after the attributes that follow a name
    end: tuple[str, ...] = ()  # after each call's arguments, in this order
    key_start: str = ""  # tagged: before an argument's name
    key_end: str = ""  # tagged: after it
    value_start: str = ""  # tagged: after the attributes that follow it; empty: at once
    value_end: str = ""  # tagged: after its value
    call_attribute: str = ""  # tagged: what stands before `body_start`; {index} is a number
    text_attribute: str = ""  # tagged: what stands before `value_start` where the value is raw text
    json_attribute: str = ""  # tagged: and where it is JSON; {type} is its type
    padded: bool = False  # tagged: a line break on both sides of a value is not part of it
    entities: bool = False  # tagged: names are written with &amp; and &quot;
    quote: str = ""  # braced: the marker on both sides of a string
    separator: str = ""  # json: what may stand between two calls
    name_key: str = "name"  # json; empty: the name is the key, its value the arguments
    arguments_key: str = "arguments"  # json
    id_key: str = ""  # json
    function_key: str = ""  # json: the object's key under which name and arguments lie
    array: bool = False  # json: calls are written in an array
    numbered_names: bool = False  # named: `functions.NAME:0` is the call's id, and NAME its name
    bare: bool = False  # a call may begin a line with no marker before it


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How one model writes text, reasoning and calls. Nothing set: plain text."""

    family: str = ""  # the declared format's name; empty: found by comparing renderings
    has_tools: bool = False  # the template shows the tools to the model itself
    reasoning: ReasoningSyntax | None = None
    calls: tuple[CallSyntax, ...] = ()  # what it writes first, what it may write too after it
    dropped: tuple[str, ...] = ()  # markers around content

    @property
    def markers(self) -> tuple[str, ...]:
        """Every marker, the longest first."""
        found = set(self.dropped)
        if self.reasoning is not None:
            found |= {self.reasoning.start, self.reasoning.end, *self.reasoning.closed_by}
        for syntax in self.calls:
            for name in _MARKERS:
                value = getattr(syntax, name)
                found |= {value} if isinstance(value, str) else set(value)
        return tuple(sorted(found - {""}, key=lambda marker: (-len(marker), marker)))

    @property
    def needs_special(self) -> bool:
        """Whether control tokens have to be shown in the generated text, so that it can be parsed."""
        return bool(self.markers)

    def shows(self, token: str) -> bool:
        """Whether a control token of this name is a marker or a part of one, and has to be shown."""
        return any(token in marker for marker in self.markers)

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether a rendered prompt ends inside reasoning, so that the model's first word is a thought."""
        return self.reasoning is not None and prompt.rstrip().endswith(self.reasoning.start.rstrip())

    def unthinking(self, prompt: str, *, heeded: bool) -> str:
        """What is to follow a prompt whose answer shall not reason: nothing where the template has `heeded`
        that, else an end of reasoning, or reasoning that is empty."""
        if self.reasoning is None:
            return ""
        if self.opens_reasoning(prompt):
            return self.reasoning.end
        return "" if heeded else self.reasoning.start + self.reasoning.end

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ChatFormat:
        """What `to_json` gave, also after it went through JSON."""
        reasoning = value.get("reasoning")
        return cls(
            **{
                **value,
                "reasoning": None if reasoning is None else ReasoningSyntax(**_with_tuples(reasoning)),
                "calls": tuple(CallSyntax(**_with_tuples(one)) for one in value.get("calls", ())),
                "dropped": tuple(value.get("dropped", ())),
            }
        )


_MARKERS = (
    *("section_start", "section_end", "start", "name_end", "id_start", "body_start", "end"),
    *("key_start", "key_end", "value_start", "value_end", "quote"),
)


def _with_tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
