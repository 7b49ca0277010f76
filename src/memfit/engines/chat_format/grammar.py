"""A grammar that forces calls in a format's own syntax."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from memfit.engines.chat_format.form import ChatFormat

__all__ = ["call_grammar"]


def call_grammar(
    form: ChatFormat,
    tools: Sequence[Mapping[str, Any]],
    *,
    choice: str = "required",
    parallel: bool = True,
    in_reasoning: bool = False,
    special_tokens: Collection[str] = (),
) -> str:
    """A Lark grammar in llguidance's dialect. `choice` is "required" or the name of a function."""
    raise NotImplementedError
