"""OpenAI's paths in the server's document: chats, completions, Responses and the model."""

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
    needs_tools,
    number,
    optional,
    record,
    request,
    text,
    words,
)

__all__ = ["OPENAI_COMPONENTS", "OPENAI_OPERATIONS"]

_BOTH = ("/v1", "")
_EVENTS = "text/event-stream"
_ASKED = (400, 408, 413, 429, 500, 503, 504)
_READ = (400, 408, 413, 500, 503)
_HELLO = [{"role": "user", "content": "Hello"}]
_COUNTED = record({"input_tokens": integer(0)})

_FUNCTION_CALL = record(
    {
        "id": text(),
        "type": words("function"),
        "function": record({"name": text(), "arguments": text()}),
    }
)
_MESSAGE = record(
    {"role": words("assistant"), "content": optional(text()), "refusal": NULL},
    reasoning_content=text(),
    tool_calls=list_of(_FUNCTION_CALL),
)


def _choices(**fields: Schema) -> Schema:
    reason = words("stop", "length", "tool_calls")
    return list_of(
        record({"index": integer(0), "logprobs": optional(OBJECT), "finish_reason": reason, **fields}),
        minItems=1,
    )


def _completed(kind: str, choices: Schema) -> Schema:
    return record(
        {
            "id": text(),
            "object": words(kind),
            "created": integer(0),
            "model": text(),
            "system_fingerprint": text(),
            "choices": choices,
            "usage": named("Usage"),
        },
        timings=OBJECT,
    )


_TEXTS = list_of(
    either(
        request({"type": words("input_text", "output_text", "text"), "text": text()}),
        request({"type": words("refusal"), "refusal": text()}),
    )
)


def _thoughts(kind: str) -> Schema:
    return either(text(), list_of(request({"type": words(kind), "text": text()})))


_NAMED = request({"type": words("function"), "name": text(minLength=1)})
_FORMAT = either(
    request({"type": words("text", "json_object")}),
    request({"type": words("json_schema"), "schema": OBJECT}, {"name": text(), "description": text()}),
)
_SAID = request(
    {
        "role": words("user", "assistant", "system", "developer"),
        "content": either(text(), _TEXTS),
    }
)
_SAID["properties"]["type"] = words("message")
_ALLOWED_TOOLS = request(
    {"type": words("allowed_tools"), "tools": list_of(request({"name": text(minLength=1)}))},
    {"mode": words("auto", "required")},
)
_FUNCTION = request(
    {"type": words("function"), "name": FUNCTION_NAME}, {"description": text(), "parameters": OBJECT}
)
# The service's own, which are left out.
_OTHER_TOOL = request({"type": {"type": "string", "not": words("function")}})
_EFFORTS = words("none", "minimal", "low", "medium", "high", "xhigh", "max")

_RESPONSES = request(
    {"input": either(text(), list_of(named("ResponsesItem")))},
    {
        **dict.fromkeys(("model", "instructions", "user", "safety_identifier", "prompt_cache_key"), text()),
        **dict.fromkeys(("stream", "parallel_tool_calls", "return_progress", "timings_per_token"), BOOLEAN),
        **dict.fromkeys(("previous_response_id", "conversation", "prompt"), NULL),
        "background": words(False),
        "max_output_tokens": named("AnswerLimit"),
        "max_tool_calls": INTEGER,
        "temperature": number(0, 100),
        "top_p": SHARE,
        **dict.fromkeys(("presence_penalty", "frequency_penalty"), number(-100, 100)),
        "top_k": integer(0, 2**31 - 1),
        "seed": integer(0, 2**32 - 1),
        "min_p": number(0, 1),
        "repeat_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
        "stop": ANY_STOPS,
        "tools": list_of(either(_FUNCTION, _OTHER_TOOL), maxItems=512),
        "tool_choice": either(words("auto", "none", "required"), _NAMED, _ALLOWED_TOOLS),
        "reasoning": request({}, {"effort": _EFFORTS, "summary": text()}),
        "text": request({}, {"format": _FORMAT}),
        "include": list_of({}),
        "top_logprobs": integer(0, 20),
        "truncation": words("auto", "disabled"),
        "metadata": {"type": "object", "additionalProperties": text()},
        "chat_template_kwargs": OBJECT,
    },
)

OPENAI_COMPONENTS: dict[str, Schema] = {
    "Responses": _RESPONSES,
    "Usage": record(
        {
            **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), integer(0)),
            "prompt_tokens_details": record({"cached_tokens": integer(0), "audio_tokens": integer(0)}),
            "completion_tokens_details": record({"reasoning_tokens": integer(0)}),
        }
    ),
    "Model": record(
        {
            "id": text(),
            "object": words("model"),
            "created": integer(0),
            "owned_by": text(),
            **dict.fromkeys(("aliases", "tags"), list_of(text())),
            "meta": record(dict.fromkeys(("n_ctx", "n_ctx_train", "n_params", "size"), integer(0))),
        }
    ),
    "ResponsesItem": either(
        _SAID,
        request({"type": words("function_call"), "call_id": text(), "name": text(), "arguments": text()}),
        request(
            {"type": words("function_call_output"), "call_id": text()}, {"output": either(text(), _TEXTS)}
        ),
        request(
            {"type": words("reasoning")},
            {"content": _thoughts("reasoning_text"), "summary": _thoughts("summary_text")},
        ),
    ),
}

_RESPONSES["allOf"] = [needs_tools("auto", "none")]
_RESPONSE = record(
    {
        "id": text(),
        "object": words("response"),
        "created_at": integer(0),
        "completed_at": optional(integer(0)),
        "status": words("completed", "incomplete"),
        "error": NULL,
        "incomplete_details": optional(OBJECT),
        "model": text(),
        "output": list_of(record({"type": words("message", "reasoning", "function_call"), "id": text()})),
        "usage": record(dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), integer(0))),
        "tools": list_of(OBJECT),
        "metadata": OBJECT,
        "truncation": words("auto", "disabled"),
        "store": words(False),
    }
)
_NAME: Schema = {"name": "name", "in": "path", "required": True, "schema": named("ModelName")}
_VERSION: Schema = {
    "name": "anthropic-version",
    "in": "header",
    "description": "Where it is given, the list is Anthropic's.",
    "schema": text(),
}
_MODELS = record({"object": words("list"), "data": list_of(named("Model")), "models": list_of({})})

OPENAI_OPERATIONS = (
    ApiOperation(
        path="/chat/completions",
        prefixes=_BOTH,
        summary="Answer a chat",
        method="post",
        body="Chat",
        examples=(
            {"messages": _HELLO, "max_tokens": 8},
            {"messages": _HELLO, "max_tokens": 8, "logprobs": True, "top_logprobs": 2},
        ),
        answer=_completed("chat.completion", _choices(message=_MESSAGE)),
        stream=_EVENTS,
        errors=_ASKED,
    ),
    ApiOperation(
        path="/chat/completions/input_tokens",
        prefixes=_BOTH,
        summary="How many tokens a chat has",
        method="post",
        body="Chat",
        examples=({"messages": _HELLO, "max_tokens": 8, "logprobs": True, "top_logprobs": 2},),
        answer=_COUNTED,
        errors=_READ,
    ),
    ApiOperation(
        path="/completions",
        prefixes=("/v1",),  # llama-server's has the other
        summary="Continue prompts",
        method="post",
        body="Completion",
        examples=({"prompt": "Once upon a time", "max_tokens": 8},),
        answer=_completed("text_completion", _choices(text=text())),
        stream=_EVENTS,
        errors=_ASKED,
    ),
    ApiOperation(
        path="/responses",
        prefixes=_BOTH,
        summary="Answer an input; nothing is kept",
        method="post",
        body="Responses",
        examples=({"input": "Hello", "max_output_tokens": 8},),
        answer=_RESPONSE,
        stream=_EVENTS,
        errors=_ASKED,
    ),
    ApiOperation(
        path="/responses/input_tokens",
        prefixes=_BOTH,
        summary="How many tokens an input has",
        method="post",
        body="Responses",
        examples=({"input": "Hello", "max_output_tokens": 8},),
        answer=record({"object": text(), "input_tokens": integer(0)}),
        errors=_READ,
    ),
    ApiOperation(
        path="/models",
        prefixes=_BOTH,
        summary="The models that are served",
        answer=either(_MODELS, named("AnthropicModels")),
        parameters=(_VERSION,),
    ),
    ApiOperation(
        path="/models/{name}",
        prefixes=_BOTH,
        summary="One model",
        answer=named("Model"),
        parameters=(_NAME,),
        errors=(404,),
    ),
)
