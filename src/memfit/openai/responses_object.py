"""The Response object of OpenAI's Responses, with every field of its published document, and its items."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from memfit.openai.answers import Usage
from memfit.openai.ask import Ask

__all__ = [
    "ResponseStatus",
    "call_item",
    "message_item",
    "reasoning_item",
    "reasoning_part",
    "response_fields",
    "response_object",
    "text_part",
]

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]
# Echoed as they came; null where they did not.
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "user",
)


def response_fields(body: Mapping[str, Any], ask: Ask, *, model: str) -> dict[str, Any]:
    """What a response says of its request: `body` as it came, `ask` as it was read."""
    reasoning = body.get("reasoning") or {}
    return {
        **{name: body.get(name) for name in _ECHOED},
        "model": model,
        "metadata": body.get("metadata") or {},
        "tools": [_tool(tool) for tool in body.get("tools") or () if tool["type"] == "function"],
        "tool_choice": body.get("tool_choice") or "auto",
        "parallel_tool_calls": ask.parallel_calls,
        "text": {"format": _format(body), "verbosity": "medium"},
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "temperature": ask.sampling.temperature,
        "top_p": ask.sampling.top_p,
        "presence_penalty": ask.sampling.presence_penalty,
        "frequency_penalty": ask.sampling.frequency_penalty,
        "top_logprobs": ask.logprobs or 0,
        "truncation": "auto" if ask.truncates else "disabled",
        # Nothing is kept, nor done later.
        "previous_response_id": None,
        "store": False,
        "background": False,
        "service_tier": "default",
    }


def response_object(
    fields: Mapping[str, Any],
    *,
    name: str,
    created: float,
    status: ResponseStatus,
    output: Sequence[Mapping[str, Any]] = (),
    usage: Usage | None = None,
    error: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`name` is its id, `created` seconds since 1970."""
    return {
        "id": name,
        "object": "response",
        "created_at": int(created),
        "completed_at": int(time.time()) if status == "completed" else None,
        "status": status,
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        **fields,
        "output": list(output),
        "usage": None if usage is None else _usage(usage),
    }


def message_item(
    name: str, status: str, text: str | None, logprobs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """`text` is None where none has begun."""
    content = [] if text is None else [text_part(text, logprobs)]
    return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}


def reasoning_item(name: str, status: str, text: str | None) -> dict[str, Any]:
    """Thoughts are told as they are: nobody is there to sum them up."""
    content = [] if text is None else [reasoning_part(text)]
    return {"id": name, "type": "reasoning", "status": status, "summary": [], "content": content}


def call_item(name: str, status: str, *, call: str, function: str, arguments: str) -> dict[str, Any]:
    return {
        "id": name,
        "type": "function_call",
        "status": status,
        "call_id": call,
        "name": function,
        "arguments": arguments,
    }


def text_part(text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": tool.get("parameters"),
        "strict": bool(tool.get("strict")),
    }


def _format(body: Mapping[str, Any]) -> dict[str, Any]:
    wanted = (body.get("text") or {}).get("format") or {"type": "text"}
    if wanted["type"] != "json_schema":
        return {"type": wanted["type"]}
    return {
        "type": "json_schema",
        "name": wanted.get("name") or "answer",
        "description": wanted.get("description"),
        "schema": wanted["schema"],
        "strict": bool(wanted.get("strict")),
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
