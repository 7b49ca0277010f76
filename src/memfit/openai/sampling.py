"""The fields of a body that say how tokens are chosen → Sampling. One table for every API's spellings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from memfit.engines.requests import RANDOM_SEED, Sampling
from memfit.errors import UsageError, WrongValueError
from memfit.openai.fields import read_integer, read_number
from memfit.strict_json import refusal, shown

__all__ = ["BASIC", "SAMPLING", "read_sampling", "read_stop"]

_MOST_STOPS = 256
_MOST_STOP = 4096  # characters of one
_MOST_BIASES = 65_536

# Fields that every edge honours, and those of servers alone.
BASIC: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("max_tokens", "top_k", "seed"), read_integer),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repeat_penalty"), read_number),
    "stop": lambda value, path: read_stop(value, path),
}
SAMPLING: dict[str, Callable[[Any, str], Any]] = {
    **BASIC,
    **dict.fromkeys(("repeat_last_n", "mirostat", "dry_allowed_length", "dry_penalty_last_n"), read_integer),
    **dict.fromkeys(
        (
            *("typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold"),
            *("dynatemp_range", "dynatemp_exponent", "mirostat_tau", "mirostat_eta"),
            *("frequency_penalty", "presence_penalty", "dry_multiplier", "dry_base"),
        ),
        read_number,
    ),
    "seed": lambda value, path: read_integer(value, path) % (RANDOM_SEED + 1),  # -1 is a random one
    "dry_sequence_breakers": lambda value, path: read_stop(value, path),
    "logit_bias": lambda value, path: _bias(value, path),
    "ignore_eos": lambda value, path: _flag(value, path),
}


def read_sampling(
    body: Mapping[str, Any],
    defaults: Sampling,
    *,
    prefix: str = "",
    known: Mapping[str, Callable[[Any, str], Any]] = SAMPLING,
    spellings: Mapping[str, str] | None = None,
) -> Sampling:
    """What the body says, over `defaults`; null is as left out.

    `spellings` are other names of fields; `prefix` stands before the names in errors.

    Raises:
        UsageError: a value that is none, or that is given by two names.
    """
    given: dict[str, Any] = {}
    names: dict[str, str] = {}  # field → as the body calls it
    for name, value in body.items():
        field = (spellings or {}).get(name, name)
        if value is None or field not in known:
            continue
        if field in names:
            one, other = sorted((names[field], name), key=lambda each: each != field)
            raise UsageError(f"{prefix}{one} and {other} are the same; give one of them", field=prefix + one)
        names[field] = name
        given[field] = known[field](value, prefix + name)
    try:
        return replace(defaults, **given)
    except WrongValueError as error:
        raise error.as_field(prefix + names.get(error.name, error.name)) from None


def read_stop(value: Any, path: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise refusal(path, value, "a text that is not empty, or a list of such texts")
    if len(texts) > _MOST_STOPS or max(map(len, texts), default=0) > _MOST_STOP:
        raise UsageError(
            f"{path}: at most {_MOST_STOPS} texts of {_MOST_STOP} characters are taken", field=path
        )
    return tuple(texts)


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


_DIGITS = 10  # more are no token


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise refusal(path, value, "true or false")
    return value
