"""A template's format: a declared one where its source holds that family's markers, else by comparing renderings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from memfit.engines.chat_format.form import ChatFormat

__all__ = ["Render", "analyse_template"]

# render(messages, tools=None, add_generation_prompt=True, **options) -> the prompt's text
Render: TypeAlias = Callable[..., str]


def analyse_template(render: Render, template: str) -> ChatFormat:
    """The format of what a model with this template writes; a template that shows nothing: plain text."""
    return ChatFormat()
