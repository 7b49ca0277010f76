"""The bodies of llama-server's own paths → what they ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfit.engines.requests import Sampling
from memfit.errors import UsageError
from memfit.openai.ask import Ask
from memfit.openai.chat import read_prompts, read_shared
from memfit.openai.fields import read_flag, read_integer
from memfit.strict_json import refusal

__all__ = ["read_infill", "read_llama_completion", "response_fields"]

_MOST_PROBABILITIES = 1000


def read_llama_completion(body: Mapping[str, Any], *, defaults: Sampling) -> Ask:
    """Of /completion.

    Raises:
        UsageError: a field that is wrong, or that memfit cannot honour.
    """
    return Ask(
        prompts=read_prompts(body.get("prompt"), "prompt"),
        logprobs=_probabilities(body),
        probabilities_after=read_flag(body, "post_sampling_probs"),
        # A stream names its tokens always, as there.
        names_tokens=read_flag(body, "return_tokens") or read_flag(body, "stream"),
        **{**read_shared(body, defaults=defaults), "verbose": True},
    )


def read_infill(body: Mapping[str, Any], *, defaults: Sampling) -> Ask:
    """Of /infill: what stands before and after the text that is asked for, with `input_extra` files before
    it and `prompt` after the prefix. Errors as `read_llama_completion`."""
    texts = {}
    for name in ("input_prefix", "input_suffix", "prompt"):
        texts[name] = body.get(name, "" if name == "prompt" else None)
        if not isinstance(texts[name], str):
            raise refusal(name, texts[name], "a text")
    extra = [] if body.get("input_extra") is None else body["input_extra"]
    if not isinstance(extra, list):
        raise refusal("input_extra", extra, "a list of objects with a text")
    before = []
    for index, each in enumerate(extra):
        text = each.get("text") if isinstance(each, dict) else None
        if not isinstance(text, str):
            raise refusal(f"input_extra[{index}].text", text, "a text")
        before.append(text)
    ask = read_llama_completion({**body, "prompt": "-"}, defaults=defaults)
    prefix = "\n".join([*before, texts["input_prefix"] + texts["prompt"]])
    return Ask(**{**vars(ask), "prompts": (prefix,), "suffix": texts["input_suffix"]})


def response_fields(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of the answer that are wanted; (): all."""
    fields = [] if body.get("response_fields") is None else body["response_fields"]
    if not isinstance(fields, list) or not all(isinstance(one, str) for one in fields):
        raise refusal("response_fields", fields, "a list of names")
    return tuple(fields)


def _probabilities(body: Mapping[str, Any]) -> int | None:
    wanted = body.get("n_probs", body.get("logprobs"))
    if wanted is None or wanted is False:
        return None
    number = read_integer(wanted, "n_probs")
    if not 0 <= number <= _MOST_PROBABILITIES:
        raise UsageError(f"n_probs: {number} is not between 0 and {_MOST_PROBABILITIES}", field="n_probs")
    return number or None
