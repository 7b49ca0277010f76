"""The body of a chat or a completion as a server takes it → what it asks.

Fields that change an answer are honoured or refused; those that nobody knows are ignored, as every server
does. What a batch's line may hold is in requests.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfit.engines.requests import Message, Sampling, TemplateOptions
from memfit.errors import UsageError
from memfit.openai.ask import NONE, Ask
from memfit.openai.fields import read_flag, read_integer, read_list, read_object, read_optional_text
from memfit.openai.messages import read_messages
from memfit.openai.sampling import SAMPLING, read_sampling
from memfit.openai.schemas import read_response_format, read_schema
from memfit.openai.tools import read_tool_choice, read_tools
from memfit.strict_json import refusal, shown

__all__ = ["Prompt", "read_chat", "read_completion", "read_prompts", "read_shared"]

Prompt = str | tuple[int | str, ...]

_LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")
_MOST_CHOICES = 128
_MOST_LOGPROBS = 1000
_MOST_PROMPTS = 4096
_MOST_MESSAGES = 65_536
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
# What a service adds, and a model alone has not: an answer without it is what there is.
_LEFT_OUT = ("prediction", "web_search_options")


def read_chat(body: Mapping[str, Any], *, defaults: Sampling) -> Ask:
    """OpenAI's body of /v1/chat/completions, with llama-server's and vLLM's fields.

    Raises:
        UsageError: a field that is wrong, or that memfit cannot honour.
    """
    if body.get("modalities") not in (None, ["text"]):  # `audio` says how that one sounds
        raise refusal("modalities", body["modalities"], '["text"]')
    messages = read_messages(body.get("messages"), "messages", calls=True)
    if len(messages) > _MOST_MESSAGES:
        raise UsageError(f"messages: at most {_MOST_MESSAGES} are taken", field="messages")
    choice = read_tool_choice(*_tools(body))
    values = _template_values(body)
    generates, continues = _ending(body, messages)
    shared = read_shared(body, defaults=defaults)
    if choice.tools and choice.choice != NONE and shared["grammar"]:
        raise UsageError("grammar and tools cannot be asked for together", field="grammar")
    left_out = [name for name in _LEFT_OUT if body.get(name) is not None]
    return Ask(
        messages=messages,
        warnings=tuple(f"{name} is left out: this server has none" for name in left_out),
        template=TemplateOptions(
            tools=choice.tools, values=values, adds_generation_prompt=generates, continues=continues
        ),
        tool_choice=choice.choice,
        function=choice.function,
        parallel_calls=read_flag(body, "parallel_tool_calls", default=True),
        logprobs=_chat_logprobs(body),
        parses_reasoning=body.get("reasoning_format") != "none",
        **shared,
    )


def read_completion(body: Mapping[str, Any], *, defaults: Sampling) -> Ask:
    """OpenAI's body of /v1/completions. Errors as `read_chat`."""
    logprobs = body.get("logprobs")
    if logprobs is not None and logprobs is not False:
        logprobs = _bounded(0 if logprobs is True else logprobs, "logprobs", _MOST_LOGPROBS)
    echo = read_flag(body, "echo")
    n, best = body.get("n") or 1, body.get("best_of")
    if best not in (None, 0, n):
        raise UsageError(f"best_of: {shown(best)} is not supported; leave it out", field="best_of", needed=n)
    return Ask(
        prompts=read_prompts(body.get("prompt"), "prompt"),
        echo=echo,
        logprobs=None if logprobs is False else logprobs,
        suffix=read_optional_text(body, "suffix") or None,
        **read_shared(body, defaults=defaults),
    )


def read_shared(body: Mapping[str, Any], *, defaults: Sampling) -> dict[str, Any]:
    """What chats and completions have in common, as fields of an Ask. Errors as `read_chat`."""
    stream, options = read_flag(body, "stream"), body.get("stream_options")
    if options is not None:
        options = read_object(options, "stream_options")
    schema, grammar = body.get("json_schema"), body.get("grammar")
    if schema is not None:
        schema = read_schema(schema, "json_schema")
    if body.get("response_format") is not None:
        wanted = read_response_format(body["response_format"], "response_format")
        schema = schema if wanted is None else wanted
    if grammar is not None and not isinstance(grammar, str):
        raise refusal("grammar", grammar, "a text in GBNF")
    if grammar and schema is not None:
        raise UsageError("grammar and a JSON schema cannot be asked for together", field="grammar")
    n = body.get("n")
    limited, generates = _limits(body)
    return {
        "sampling": read_sampling(limited, SAMPLING, defaults),
        "generates": generates,
        "schema": schema,
        "grammar": grammar or None,
        "n": 1 if n is None else _bounded(n, "n", _MOST_CHOICES, least=1),
        "stream": stream,
        "usage_in_stream": bool(options and options.get("include_usage")),
        "truncates": body.get("truncation") == "auto",
        "tells_progress": read_flag(body, "return_progress"),
        "tells_timings": read_flag(body, "timings_per_token"),
        "verbose": read_flag(body, "verbose"),
        "model": read_optional_text(body, "model"),
    }


def read_prompts(value: Any, path: str) -> tuple[Prompt, ...]:
    """A text, tokens, texts and tokens in turn, llama-server's object, or a list of these."""
    several = isinstance(value, list) and not any(_is_token(each) for each in value)
    listed = value if several else [value]
    if not 0 < len(listed) <= _MOST_PROMPTS:
        raise refusal(path, value, f"a text, tokens, or up to {_MOST_PROMPTS} of these")
    return tuple(_prompt(each, f"{path}[{index}]" if several else path) for index, each in enumerate(listed))


def _prompt(value: Any, path: str) -> Prompt:
    if isinstance(value, dict):
        if value.get("multimodal_data"):
            raise UsageError(f"{path}.multimodal_data is not supported; this model reads text", field=path)
        value = value.get("prompt_string")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise refusal(path, value, "a text or tokens")
    for index, each in enumerate(value):
        if not isinstance(each, str):
            read_integer(each, f"{path}[{index}]")
    return tuple(value)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tools(body: Mapping[str, Any]) -> tuple[Any, str, Any]:
    """What read_tool_choice takes, of the fields of today or of those that they have replaced."""
    if body.get("tools") is None and body.get("functions") is not None:
        listed = read_list(body["functions"], "functions", "a list of functions")
        choice = body.get("function_call")
        if isinstance(choice, dict):
            choice = {"type": "function", "function": choice}
        return choice, "function_call", read_tools([{"function": one} for one in listed], "functions").tools
    tools = read_tools(body.get("tools"), "tools").tools
    choice = body.get("tool_choice")
    # Clients send a choice beside no tools.
    return (None if not tools and choice in ("auto", "none") else choice), "tool_choice", tools


def _template_values(body: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the template's own."""
    values = body.get("chat_template_kwargs")
    values = {} if values is None else dict(read_object(values, "chat_template_kwargs"))
    thinking = values.get("enable_thinking")
    if thinking is not None and not isinstance(thinking, bool):
        raise refusal("chat_template_kwargs.enable_thinking", thinking, "true or false")
    effort = body.get("reasoning_effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise refusal("reasoning_effort", effort, f"one of {', '.join(_EFFORTS)}")
        values |= {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
    return values


def _ending(body: Mapping[str, Any], messages: tuple[Message, ...]) -> tuple[bool, bool]:
    """Whether the template begins the answer, and whether the last message is continued: an assistant's is,
    as llama-server has it."""
    generates = read_flag(body, "add_generation_prompt", default=True)
    continues = read_flag(body, "continue_final_message")
    ends_with_answer = messages[-1]["role"] == "assistant"
    if continues and body.get("add_generation_prompt") is True:
        raise UsageError(
            "add_generation_prompt and continue_final_message cannot both be true",
            field="continue_final_message",
        )
    if continues and not ends_with_answer:
        raise UsageError(
            "continue_final_message: the last message is not the assistant's", field="continue_final_message"
        )
    if not ends_with_answer or (body.get("continue_final_message") is False and generates):
        return generates, False
    if len(messages) > 1 and messages[-2]["role"] == "assistant":
        raise UsageError("messages: two of the assistant's stand at the end", field="messages")
    if messages[-1].get("tool_calls"):
        raise UsageError("messages: a message with calls cannot be continued", field="messages")
    return False, True


def _chat_logprobs(body: Mapping[str, Any]) -> int | None:
    wanted = read_flag(body, "logprobs")
    top = body.get("top_logprobs")
    if top is None:
        return 0 if wanted else None
    if not wanted:
        raise UsageError("top_logprobs needs logprobs to be true", field="top_logprobs")
    return _bounded(top, "top_logprobs", _MOST_LOGPROBS)


def _bounded(value: Any, path: str, most: int, *, least: int = 0) -> int:
    number = read_integer(value, path)
    if not least <= number <= most:
        raise refusal(path, value, f"a whole number from {least} to {most}")
    return number


def _limits(body: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The body with limits that Sampling takes, and whether anything is generated.

    llama-server's word for "until the model ends" is -1, and -2 for "until the context is full". Nothing is
    wanted by those who only ask for the prompt's own probabilities, or warm up a cache. Of several names, as
    clients send them to services old and new, the lowest limit holds.
    """
    limits = {name: body[name] for name in _LIMITS if _is_token(body.get(name))}
    kept = {name: value for name, value in body.items() if name not in limits}
    wanted = sorted((value, name) for name, value in limits.items() if value not in (-1, -2))
    if not wanted:
        return kept, True
    lowest, name = wanted[0]
    return {**kept, name: lowest or 1}, lowest != 0
