"""The bodies of Ollama's API: chat and generate → an Ask; embeddings, loading and names.

Strict in what it honours; fields and options that it does not know are ignored, as Ollama ignores them. What
Ollama decides when it loads a model (num_ctx, num_gpu, num_thread) was decided by the plan, and is ignored
too: a prompt that is longer than the served context is refused with both numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from memfit.engines.requests import RANDOM_SEED, Sampling, TemplateOptions
from memfit.errors import UsageError
from memfit.openai.ask import Ask
from memfit.openai.contents import refuse_part
from memfit.openai.fields import (
    read_flag,
    read_integer,
    read_list,
    read_number,
    read_object,
    read_optional_text,
    read_text,
    require_harmless,
)
from memfit.openai.sampling import numbers, read_sampling, read_stop
from memfit.openai.schemas import read_schema
from memfit.openai.tools import read_tools
from memfit.openai.turns import Turns, function_call, read_arguments
from memfit.strict_json import refusal

__all__ = [
    "OllamaEmbed",
    "OllamaForm",
    "loads_only",
    "read_keep_alive",
    "read_ollama_chat",
    "read_ollama_embed",
    "read_ollama_embeddings",
    "read_ollama_generate",
    "read_ollama_name",
    "read_stream",
]

OllamaForm = Literal["chat", "generate"]
_QUESTIONS: dict[OllamaForm, str] = {"chat": "messages", "generate": "prompt"}
_NOTHING: dict[OllamaForm, tuple[Any, ...]] = {"chat": (None, []), "generate": (None, "")}
_ROLES = ("system", "user", "assistant", "tool")
_LEVELS = ("low", "medium", "high", "max")
_MOST_LOGPROBS = 20
_MINUTE = 60
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": _MINUTE, "h": 60 * _MINUTE}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)


def _whole(value: Any, path: str) -> int:
    """Whole numbers with a decimal point are integers to Ollama."""
    return read_integer(int(value) if isinstance(value, float) and value.is_integer() else value, path)


def _limit(value: Any, path: str) -> int | None:
    """Below 1: until the model ends, or the context does."""
    most = _whole(value, path)
    return most if most > 0 else None


def _seed(value: Any, path: str) -> int:
    seed = _whole(value, path)
    return RANDOM_SEED if seed < 0 else seed


_SAMPLING = {
    **{name: (name, _whole) for name in ("top_k", "repeat_last_n", "mirostat")},
    **numbers("temperature", "top_p", "min_p", "typical_p", "mirostat_tau", "mirostat_eta"),
    **numbers("repeat_penalty", "presence_penalty", "frequency_penalty"),
    "num_predict": ("max_tokens", _limit),
    "seed": ("seed", _seed),
    "stop": ("stop", read_stop),
}


def read_ollama_chat(body: Mapping[str, Any], *, defaults: Sampling) -> Ask:
    """The body's own options win over `defaults`.

    Raises:
        UsageError: a field that is wrong, or that memfit does not support.
    """
    turns = _turns(body)
    tools = read_tools(body.get("tools"), "tools").tools
    template = TemplateOptions(tools=tools, values=_values(body), continues=turns.is_continued)
    return Ask(
        messages=turns.messages,
        template=template,
        truncates=read_flag(body, "truncate", default=True),
        **_shared(body, defaults),
    )


def read_ollama_generate(body: Mapping[str, Any], *, defaults: Sampling) -> Ask:
    """A prompt is a user's message, unless it is `raw`, or the text before a suffix.

    Raises:
        UsageError: a field that is wrong, or that memfit does not support.
    """
    # Nothing here has another template, and no answer has given a context away.
    for name, harmless in {"template": ("",), "context": ([],)}.items():
        require_harmless("", name, body.get(name), {name: harmless})
    _refuse_images(body, "")
    prompt, system, suffix = (
        "" if body.get(name) is None else read_text(body[name], name)
        for name in ("prompt", "system", "suffix")
    )
    shared = _shared(body, defaults)
    raw = read_flag(body, "raw")
    if raw and system:
        raise UsageError("system: a raw prompt has no system message; leave it out", field="system")
    if raw or suffix:
        return Ask(prompts=(prompt,), suffix=suffix or None, **shared)
    turns = Turns()
    if system:
        turns.say("system", system)
    turns.say("user", prompt)
    template = TemplateOptions(values=_values(body))
    return Ask(
        messages=turns.messages,
        template=template,
        truncates=read_flag(body, "truncate", default=True),
        **shared,
    )


def loads_only(body: Mapping[str, Any], form: OllamaForm) -> Literal["load", "unload"] | None:
    """What a body is for that asks nothing: to load the model or, with `keep_alive` 0, to unload it."""
    if body.get(_QUESTIONS[form]) not in _NOTHING[form]:
        return None
    return "unload" if read_keep_alive(body) == 0 else "load"


def read_keep_alive(body: Mapping[str, Any]) -> float | None:
    """Seconds that a model stays loaded; infinite where they are negative; None: not said."""
    value = body.get("keep_alive")
    if value is None:
        return None
    if isinstance(value, str):
        seconds = _duration(value)
        if seconds is None:
            raise refusal("keep_alive", value, "a duration: 300, 5m or 1h30m")
    else:
        seconds = read_number(value, "keep_alive")
    return inf if seconds < 0 else seconds


def _duration(text: str) -> float | None:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits.isascii() and digits.isdecimal() and len(digits) < 20:
        return sign * float(digits)
    parts = _DURATION.findall(digits)
    if not parts or len(text) > 100 or "".join(number + unit for number, unit in parts) != digits:
        return None
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass(frozen=True, kw_only=True)
class OllamaEmbed:
    """Texts of which embeddings are wanted."""

    texts: tuple[str, ...]  # (): the model is only loaded
    truncate: bool = True  # those too long are cut
    dimensions: int | None = None  # only the first, at length 1 again; None: all
    model: str | None = None


def read_ollama_embed(body: Mapping[str, Any]) -> OllamaEmbed:
    given = body.get("input")
    texts = [given] if isinstance(given, str) else read_list([] if given is None else given, "input")
    dimensions = None if body.get("dimensions") is None else _whole(body["dimensions"], "dimensions")
    if dimensions is not None and dimensions < 0:
        raise refusal("dimensions", dimensions, "0 or above")
    return OllamaEmbed(
        texts=tuple(read_text(text, f"input[{index}]") for index, text in enumerate(texts) if text != ""),
        truncate=read_flag(body, "truncate", default=True),
        dimensions=dimensions or None,
        model=read_optional_text(body, "model"),
    )


def read_ollama_embeddings(body: Mapping[str, Any]) -> OllamaEmbed:
    """The older call, for one text."""
    prompt = body.get("prompt")
    text = "" if prompt is None else read_text(prompt, "prompt")
    return OllamaEmbed(texts=(text,) if text else (), model=read_optional_text(body, "model"))


def read_ollama_name(body: Mapping[str, Any]) -> str:
    """The model that is to be shown, pulled or deleted. Older clients call it `name`."""
    name = body.get("model") or body.get("name")
    if not isinstance(name, str):
        raise refusal("model", name, "a model's name")
    return name


def read_stream(body: Mapping[str, Any]) -> bool:
    return read_flag(body, "stream", default=True)


def _shared(body: Mapping[str, Any], defaults: Sampling) -> dict[str, Any]:
    """What chat and generate have in common."""
    options = {} if body.get("options") is None else read_object(body["options"], "options")
    read_keep_alive(body)
    return {
        "sampling": read_sampling(options, _SAMPLING, defaults, "options."),
        "schema": _schema(body.get("format")),
        "logprobs": _logprobs(body),
        "stream": read_stream(body),
        "model": read_optional_text(body, "model"),
    }


def _turns(body: Mapping[str, Any]) -> Turns:
    turns, waiting = Turns(), _Waiting()
    given = body.get("messages")
    for index, value in enumerate(
        read_list([] if given is None else given, "messages", "a list of messages")
    ):
        path = f"messages[{index}]"
        message = read_object(value, path, "an object with a role and a content")
        role = message.get("role")
        role = role.lower() if isinstance(role, str) else role
        if role not in _ROLES:
            raise refusal(f"{path}.role", role, f"one of {', '.join(_ROLES)}")
        _refuse_images(message, f"{path}.")
        content, thinking, name, call = (
            "" if message.get(field) is None else read_text(message[field], f"{path}.{field}")
            for field in ("content", "thinking", "tool_name", "tool_call_id")
        )
        if role == "assistant":
            calls = waiting.add(message.get("tool_calls"), f"{path}.tool_calls")
            turns.answer(content, reasoning=thinking, calls=calls)
        elif role == "tool":
            turns.result(call or waiting.take(name), content, name=name or None)
        else:
            turns.say(role, content)
    return turns


class _Waiting:
    """Calls whose results have not come. Ollama's clients seldom give them ids: names tell them apart."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, str]] = []  # id, name
        self._count = 0

    def add(self, value: Any, path: str) -> tuple[Mapping[str, Any], ...]:
        given = read_list([] if value is None else value, path, "a list of calls")
        calls = tuple(self._call(each, f"{path}[{index}]") for index, each in enumerate(given))
        if calls:  # results of earlier ones do not come any more
            self._calls = [(call["id"], call["function"]["name"]) for call in calls]
        return calls

    def take(self, name: str) -> str:
        """The id of the first call of this name, else of the first."""
        found = next((call for call in self._calls if call[1] == name), next(iter(self._calls), None))
        if found is None:
            return name
        self._calls.remove(found)
        return found[0]

    def _call(self, value: Any, path: str) -> dict[str, Any]:
        call = read_object(value, path)
        function = read_object(call.get("function"), f"{path}.function")
        name = read_text(function.get("name"), f"{path}.function.name")
        given = function.get("arguments")
        arguments = (
            read_arguments(given)
            if isinstance(given, str)
            else read_object({} if given is None else given, f"{path}.function.arguments")
        )
        self._count += 1
        own = call.get("id")
        return function_call(read_text(own, f"{path}.id") if own else f"call_{self._count}", name, arguments)


def _refuse_images(value: Mapping[str, Any], prefix: str) -> None:
    if value.get("images"):
        refuse_part("image", f"{prefix}images", {"text": "text"})


def _values(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template is told."""
    think = body.get("think")
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"enable_thinking": think}
    if think not in _LEVELS:
        raise refusal("think", think, f"true, false, or one of {', '.join(_LEVELS)}")
    return {"enable_thinking": True, "reasoning_effort": "high" if think == "max" else think}


def _schema(value: Any) -> Mapping[str, Any] | None:
    if value is None or value == "":
        return None
    if value == "json":
        return {"type": "object"}
    schema = read_object(value, "format", '"json", or a JSON schema')
    return read_schema(schema, "format")


def _logprobs(body: Mapping[str, Any]) -> int | None:
    top = 0 if body.get("top_logprobs") is None else _whole(body["top_logprobs"], "top_logprobs")
    if not 0 <= top <= _MOST_LOGPROBS:
        raise refusal("top_logprobs", top, f"0 to {_MOST_LOGPROBS}")
    return top if read_flag(body, "logprobs") else None
