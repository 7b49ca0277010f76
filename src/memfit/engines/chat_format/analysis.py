"""A template's format: declared where its source holds a family's markers, else found from renderings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from memfit.engines.chat_format.families import FAMILIES, family_of
from memfit.engines.chat_format.form import ChatFormat

__all__ = ["Render", "analyse_template"]

# render(messages, tools=None, add_generation_prompt=True, **options) -> the prompt's text
Render: TypeAlias = Callable[..., str]


def analyse_template(render: Render, template: str) -> ChatFormat:
    """The format of what a model with this template writes; a template that shows nothing: plain text."""
    name = family_of(template)
    return ChatFormat() if name is None else replace(FAMILIES[name].form, family=name)
