"""Anthropic's paths in the server's document."""

from __future__ import annotations

from memfit.server.openapi_bodies import ANY_STOPS, FUNCTION_NAME, INTEGER, OBJECT
from memfit.server.openapi_schemas import (
    BOOLEAN,
    NULL,
    SHARE,
    ApiOperation,
    Schema,
    either,
    integer,
    list_of,
    named,
    number,
    optional,
    record,
    request,
    text,
    words,
)

__all__ = ["ANTHROPIC_COMPONENTS", "ANTHROPIC_OPERATIONS"]

_BOTH = ("/v1", "")
_TEXT = request({"type": words("text"), "text": text()})
_TEXTS = either(text(), list_of(_TEXT))
_RESULT = request(
    {"type": words("tool_result"), "tool_use_id": text()}, {"content": _TEXTS, "is_error": BOOLEAN}
)
_ANSWERED = either(
    _TEXT,
    request({"type": words("tool_use"), "id": text(), "name": text(), "input": OBJECT}),
    request({"type": words("thinking"), "thinking": text()}),
    request({"type": words("redacted_thinking")}),
)


def _said(role: str, block: Schema) -> Schema:
    return request({"role": words(role), "content": either(text(), list_of(block))})


_TOOL = request(
    {"name": FUNCTION_NAME}, {"type": words("custom"), "description": text(), "input_schema": OBJECT}
)
_SINGLE = {"disable_parallel_tool_use": BOOLEAN}
_FIELDS: dict[str, Schema] = {
    "model": text(),
    "system": _TEXTS,
    "tools": list_of(_TOOL, maxItems=512),
    "tool_choice": either(
        named("AnthropicChoice"),
        request({"type": words("any")}, _SINGLE),
        request({"type": words("tool"), "name": text(minLength=1)}, _SINGLE),
    ),
    "thinking": either(
        request({"type": words("adaptive", "between_tools", "disabled")}),
        request({"type": words("enabled"), "budget_tokens": INTEGER}),
    ),
    "output_config": request(
        {},
        {
            "effort": words("low", "medium", "high", "xhigh", "max"),
            "format": request({"type": words("json_schema"), "schema": OBJECT}),
        },
    ),
    "temperature": number(0, 100),
    "top_p": SHARE,
    "top_k": integer(0, 2**31 - 1),
    "stop_sequences": ANY_STOPS,
    "stream": BOOLEAN,
    "chat_template_kwargs": OBJECT,
    "mcp_servers": {"type": "array", "maxItems": 0},
}
_RULE = {
    "anyOf": [
        {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]},
        {"properties": {"tool_choice": optional(named("AnthropicChoice"))}},
    ]
}
_MESSAGES = {"messages": list_of(named("AnthropicMessage"))}
_BLOCK = record({"type": words("text", "thinking", "tool_use")})
_MODEL = record(
    {
        "type": words("model"),
        "id": text(),
        "display_name": text(),
        "created_at": text(format="date-time"),
        **dict.fromkeys(("max_input_tokens", "max_tokens"), integer(0)),
    }
)

ANTHROPIC_COMPONENTS: dict[str, Schema] = {
    "Messages": {**request({"max_tokens": named("AnswerLimit"), **_MESSAGES}, _FIELDS), **_RULE},
    "CountedMessages": {**request(_MESSAGES, {**_FIELDS, "max_tokens": named("AnswerLimit")}), **_RULE},
    "AnthropicChoice": request({"type": words("auto", "none")}, _SINGLE),
    "AnthropicMessage": either(
        _said("system", _TEXT), _said("user", either(_TEXT, _RESULT)), _said("assistant", _ANSWERED)
    ),
    "AnthropicModels": record(
        {
            "data": list_of(_MODEL),
            "has_more": words(False),
            **dict.fromkeys(("first_id", "last_id"), optional(text())),
        }
    ),
    "AnthropicError": record(
        {
            "type": words("error"),
            "error": record({"type": text(), "message": text()}),
            "request_id": text(),
        }
    ),
}

ANTHROPIC_OPERATIONS = (
    ApiOperation(
        path="/messages",
        prefixes=_BOTH,
        summary="Answer messages",
        method="post",
        body="Messages",
        examples=({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},),
        answer=record(
            {
                "id": text(),
                "type": words("message"),
                "role": words("assistant"),
                "model": text(),
                "content": list_of(_BLOCK, minItems=1),
                "stop_reason": words("end_turn", "max_tokens", "stop_sequence", "tool_use"),
                "stop_sequence": optional(text()),
                "stop_details": NULL,
                "container": NULL,
                "usage": record(dict.fromkeys(("input_tokens", "output_tokens"), integer(0))),
            }
        ),
        stream="text/event-stream",
        errors=(400, 408, 413, 429, 500, 503, 504),
        error="AnthropicError",
    ),
    ApiOperation(
        path="/messages/count_tokens",
        prefixes=_BOTH,
        summary="How many tokens messages have",
        method="post",
        body="CountedMessages",
        examples=({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},),
        answer=record({"input_tokens": integer(0)}),
        errors=(400, 408, 413, 500, 503),
        error="AnthropicError",
    ),
)
