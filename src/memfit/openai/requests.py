"""The body of an OpenAI chat or completion → a request.

Strict: what memfit cannot honour is refused by name, so that no answer silently ignores what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from memfit.engines.requests import Request, Sampling
from memfit.errors import UsageError
from memfit.openai.fields import require_harmless
from memfit.openai.messages import read_messages, read_prompt
from memfit.openai.sampling import BASIC, read_sampling
from memfit.openai.schemas import read_response_format

__all__ = ["QUESTIONS", "Form", "read_request"]

Form = Literal["chat", "completion"]
QUESTIONS: dict[Form, str] = {"chat": "messages", "completion": "prompt"}  # the field that has what is asked

_OWN = {"messages", "prompt", "response_format", *BASIC}
# Accounting and caching of a paid service: nothing that an answer depends on.
_MEANINGLESS = {
    *("model", "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
}
# Other fields of OpenAI's bodies → their values, beside null, that ask for nothing.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("audio", "prediction", "reasoning_effort", "stream_options", "verbosity"), ()),
    "web_search_options": (),
    **dict.fromkeys(("echo", "logprobs", "stream"), (False,)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "top_logprobs"), (0,)),
    **dict.fromkeys(("best_of", "n"), (1,)),
    **dict.fromkeys(("functions", "tools"), ([],)),
    **dict.fromkeys(("function_call", "tool_choice"), ("none", "auto")),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "suffix": ("",),
}


def read_request(
    body: Mapping[str, Any],
    form: Form,
    *,
    number: int,
    defaults: Sampling,
    schema: Mapping[str, Any] | None = None,
    prefix: str = "body.",
) -> Request:
    """The body's own fields win over `defaults`, its response_format over `schema`; null is as left out.

    `prefix` stands before the names of fields in errors.

    Raises:
        UsageError: a field that is wrong, or that memfit does not support.
    """
    for name, value in body.items():
        if name not in _OWN and name not in _MEANINGLESS:
            require_harmless(prefix, name, value, _HARMLESS)
    fields = {name: value for name, value in body.items() if value is not None}
    sampling = read_sampling(body, BASIC, defaults, prefix)
    if "response_format" in fields:
        schema = read_response_format(fields["response_format"], f"{prefix}response_format")
    wanted = QUESTIONS[form]
    for name in QUESTIONS.values():
        if name in fields and name != wanted:
            path = f"{prefix}{name}"
            raise UsageError(f"{path} is not for this url, which takes {wanted}", field=path, needed=wanted)
    asked, path = fields.get(wanted), f"{prefix}{wanted}"
    if form == "chat":
        messages = read_messages(asked, path)
        return Request(number=number, messages=messages, sampling=sampling, schema=schema)
    return Request(number=number, prompt=read_prompt(asked, path), sampling=sampling, schema=schema)
