"""The fields of a body that say how tokens are chosen → Sampling. Each API has its own table of names.

Knows no API: a table says which field is which option, and how its value is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from memfit.engines.requests import RANDOM_SEED, Sampling
from memfit.errors import UsageError, WrongValueError
from memfit.openai.fields import read_boolean, read_integer, read_number
from memfit.strict_json import refusal, shown

__all__ = ["BASIC", "SAMPLING", "SamplingFields", "integers", "numbers", "read_sampling", "read_stop"]

_MOST_STOPS = 256
_MOST_STOP = 4096  # characters of one
_MOST_BIASES = 65_536
_DIGITS = 10  # more are no token

# A field's name → the option that it is, and what reads its value.
SamplingFields = Mapping[str, tuple[str, Callable[[Any, str], Any]]]


def read_sampling(
    body: Mapping[str, Any], known: SamplingFields, defaults: Sampling, prefix: str = ""
) -> Sampling:
    """What a body asks for wins over `defaults`; null is as left out. `prefix` stands before names in errors.

    Raises:
        UsageError: a value that is none, or that is given by two names; names the field as the API does.
    """
    given: dict[str, Any] = {}
    names: dict[str, str] = {}  # option → as the body calls it
    for name, (option, read) in known.items():
        if body.get(name) is None:
            continue
        if option in names:
            one, other = sorted((names[option], name), key=lambda each: each != option)
            raise UsageError(f"{prefix}{one} and {other} are the same; give one of them", field=prefix + one)
        given[option], names[option] = read(body[name], prefix + name), name
    try:
        return replace(defaults, **given)
    except WrongValueError as error:
        raise error.as_field(prefix + names.get(error.name, error.name)) from None


def integers(*names: str) -> dict[str, tuple[str, Callable[[Any, str], Any]]]:
    """Fields that are called as their options are."""
    return {name: (name, read_integer) for name in names}


def numbers(*names: str) -> dict[str, tuple[str, Callable[[Any, str], Any]]]:
    return {name: (name, read_number) for name in names}


def read_stop(value: Any, path: str) -> tuple[str, ...]:
    """Stop strings: one, or a list of them. Empty ones stop nothing."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise refusal(path, value, "a text, or a list of texts")
    if len(texts) > _MOST_STOPS or max(map(len, texts), default=0) > _MOST_STOP:
        raise UsageError(
            f"{path}: at most {_MOST_STOPS} texts of {_MOST_STOP} characters are taken", field=path
        )
    return tuple(filter(None, texts))


def _strict_stop(value: Any, path: str) -> tuple[str, ...]:
    """OpenAI's, where an empty one is a mistake."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise refusal(path, value, "a text that is not empty, or a list of such texts")
    return read_stop(value, path)


def _seed(value: Any, path: str) -> int:
    """llama-server's -1 is a random one."""
    return read_integer(value, path) % (RANDOM_SEED + 1)


def _bias(value: Any, path: str) -> tuple[tuple[int | str, float], ...]:
    """OpenAI's object by token, or llama-server's list of pairs; a text stands for its tokens."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or len(pairs) > _MOST_BIASES:
        raise refusal(path, value, f"an object by token of at most {_MOST_BIASES} numbers")
    found: list[tuple[int | str, float]] = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise refusal(path, pair, "a token and a number")
        token, bias = pair
        if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < _DIGITS:
            token = int(token)
        if not isinstance(token, str):
            token = read_integer(token, path)
        # llama-server's word for "never"
        found.append((token, -inf if bias is False else read_number(bias, f"{path}.{shown(token)}")))
    return tuple(found)


# OpenAI's fields that every edge honours, and those of servers alone.
BASIC: SamplingFields = {
    **integers("max_tokens", "top_k", "seed"),
    **numbers("temperature", "top_p", "min_p", "repeat_penalty"),
    "stop": ("stop", _strict_stop),
    "max_completion_tokens": ("max_tokens", read_integer),
}
SAMPLING: SamplingFields = {
    **BASIC,
    **integers("repeat_last_n", "mirostat", "dry_allowed_length", "dry_penalty_last_n"),
    **numbers("typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range"),
    **numbers("dynatemp_exponent", "mirostat_tau", "mirostat_eta", "frequency_penalty", "presence_penalty"),
    **numbers("dry_multiplier", "dry_base"),
    "seed": ("seed", _seed),
    "dry_sequence_breakers": ("dry_sequence_breakers", _strict_stop),
    "logit_bias": ("logit_bias", _bias),
    "ignore_eos": ("ignore_eos", read_boolean),
    "n_predict": ("max_tokens", read_integer),
    "repetition_penalty": ("repeat_penalty", read_number),
}
