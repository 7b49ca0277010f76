"""Sampling options as an API names them → a Sampling. Each API has its own table of names.

Knows no API: a table says which field is which option, and how its value is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from memfit.engines.requests import Sampling
from memfit.errors import WrongValueError
from memfit.openai.fields import read_integer, read_number
from memfit.strict_json import refusal

__all__ = ["SamplingFields", "integers", "numbers", "read_sampling", "read_stop"]

# A field's name → the option that it is, and what reads its value.
SamplingFields = Mapping[str, tuple[str, Callable[[Any, str], Any]]]


def integers(*names: str) -> dict[str, tuple[str, Callable[[Any, str], Any]]]:
    """Fields that are called as their options are."""
    return {name: (name, read_integer) for name in names}


def numbers(*names: str) -> dict[str, tuple[str, Callable[[Any, str], Any]]]:
    return {name: (name, read_number) for name in names}


def read_sampling(
    body: Mapping[str, Any], known: SamplingFields, defaults: Sampling, prefix: str = ""
) -> Sampling:
    """What a body asks for wins over `defaults`; null is as left out.

    Raises:
        UsageError: names the field as the API does.
    """
    given, names = {}, {}
    for name, (option, read) in known.items():
        if body.get(name) is not None:
            given[option], names[option] = read(body[name], prefix + name), name
    try:
        return replace(defaults, **given)
    except WrongValueError as error:
        raise error.as_field(prefix + names.get(error.name, error.name)) from None


def read_stop(value: Any, path: str) -> tuple[str, ...]:
    """Stop strings: one, or a list of them. Empty ones stop nothing."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise refusal(path, value, "a text, or a list of texts")
    return tuple(filter(None, texts))
