"""Ollama's paths in the server's document."""

from __future__ import annotations

from typing import Any

from memfit.server.openapi_bodies import ANY_STOPS, OBJECT
from memfit.server.openapi_schemas import (
    BOOLEAN,
    SHARE,
    ApiOperation,
    Schema,
    either,
    integer,
    list_of,
    named,
    number,
    record,
    request,
    text,
    words,
)

__all__ = ["OLLAMA_COMPONENTS", "OLLAMA_OPERATIONS"]

_MOST = 2**63 - 1
_LINES = "application/x-ndjson"
_DURATION = r"^[-+]?([0-9]{1,19}|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)$"
_KEEP_ALIVE = either(
    {"type": "number", "exclusiveMinimum": -(2.0**63), "exclusiveMaximum": 2.0**63},
    text(pattern=_DURATION, maxLength=100),
)
_OPTIONS = request(
    {},
    {
        **dict.fromkeys(("temperature", "mirostat_tau", "mirostat_eta"), number(0, 100)),
        **dict.fromkeys(("top_p", "typical_p"), SHARE),
        **dict.fromkeys(("presence_penalty", "frequency_penalty"), number(-100, 100)),
        "min_p": number(0, 1),
        "repeat_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
        "top_k": integer(0, 2**31 - 1),
        "repeat_last_n": integer(-1, 2**31 - 1),
        "mirostat": integer(0, 2),
        "seed": integer(-_MOST, 2**32 - 1),
        "num_predict": named("OllamaLimit"),
        "stop": ANY_STOPS,
    },
)
_SHARED: dict[str, Schema] = {
    "model": text(),
    "options": named("OllamaOptions"),
    "format": either(words("", "json"), OBJECT),
    "keep_alive": _KEEP_ALIVE,
    "think": either(BOOLEAN, words("low", "medium", "high", "max")),
    "top_logprobs": integer(0, 20),
    **dict.fromkeys(("logprobs", "stream", "truncate"), BOOLEAN),
}
_CALL = request({"function": request({"name": text()}, {"arguments": either(text(), OBJECT)})})
_SAID = dict.fromkeys(("content", "thinking", "tool_name", "tool_call_id"), text())
# Where nothing is asked, the model is only loaded, or with keep_alive 0 unloaded.
_LOADED: dict[str, Schema] = {"keep_alive": _KEEP_ALIVE}

OLLAMA_COMPONENTS: dict[str, Schema] = {
    "OllamaOptions": _OPTIONS,
    "OllamaMessage": either(
        request({"role": words("system", "user", "tool")}, _SAID),
        request({"role": words("assistant")}, {**_SAID, "tool_calls": list_of(_CALL)}),
    ),
    "OllamaChat": either(
        request(
            {"messages": list_of(named("OllamaMessage"), minItems=1)},
            {**_SHARED, "tools": list_of(named("Tool"), maxItems=512)},
        ),
        request({}, {**_LOADED, "messages": {"type": "array", "maxItems": 0}}),
    ),
    "OllamaGenerate": either(
        request(
            {"prompt": text(minLength=1)},
            {
                **_SHARED,
                **dict.fromkeys(("system", "suffix"), text()),
                "raw": BOOLEAN,
                "template": words(""),
                "context": {"type": "array", "maxItems": 0},
            },
        ),
        request({}, {**_LOADED, "prompt": words("")}),
    ),
    "OllamaName": request({"model": text(minLength=1)}),
    "OllamaPull": request({"model": text(minLength=1)}, {"stream": BOOLEAN}),
    "OllamaError": record({"error": text()}),
    "OllamaModel": record(
        {
            **dict.fromkeys(("name", "model", "digest"), text()),
            "size": integer(0),
            "details": OBJECT,
        }
    ),
}


def _answered(**said: Schema) -> Schema:
    return record({"model": text(), "created_at": text(), "done": words(True), "done_reason": text(), **said})


def _asks(path: str, summary: str, body: str, answer: Schema, example: dict[str, Any]) -> ApiOperation:
    return ApiOperation(
        path=path,
        summary=summary,
        method="post",
        body=body,
        examples=(example,),
        answer=answer,
        stream=_LINES,
        errors=(400, 408, 413, 429, 500, 503, 504),
        error="OllamaError",
    )


_SHORT = {"stream": False, "options": {"num_predict": 8}}
_READ = (400, 404, 408, 413, 500, 503)

OLLAMA_OPERATIONS = (
    ApiOperation(
        path="/", summary="Whether anybody is there", answer=text(), media="text/plain", public=True
    ),
    _asks(
        "/api/chat",
        "Answer a chat, as lines of JSON unless stream is false",
        "OllamaChat",
        _answered(message=record({"role": words("assistant"), "content": text()})),
        {"model": "any", "messages": [{"role": "user", "content": "Hello"}], **_SHORT},
    ),
    _asks(
        "/api/generate",
        "Answer a prompt, as lines of JSON unless stream is false",
        "OllamaGenerate",
        _answered(response=text()),
        {"model": "any", "prompt": "Hello", **_SHORT},
    ),
    ApiOperation(
        path="/api/tags",
        summary="The models on this disk, and the one that is served",
        answer=record({"models": list_of(named("OllamaModel"))}),
    ),
    ApiOperation(
        path="/api/ps",
        summary="The model that is loaded",
        answer=record({"models": list_of(named("OllamaModel"))}),
    ),
    ApiOperation(
        path="/api/version", summary="The version of Ollama's API", answer=record({"version": text()})
    ),
    ApiOperation(
        path="/api/show",
        summary="One model",
        method="post",
        body="OllamaName",
        examples=({"model": "demo"},),
        answer=record({"details": OBJECT, "model_info": OBJECT, "capabilities": list_of(text())}),
        errors=_READ,
        error="OllamaError",
    ),
    ApiOperation(
        path="/api/pull",
        summary="Download a model, as lines of JSON unless stream is false",
        method="post",
        body="OllamaPull",
        examples=({"model": "demo"},),
        answer=record({"status": text()}),
        stream=_LINES,
        errors=_READ,
        error="OllamaError",
    ),
    ApiOperation(
        path="/api/delete",
        summary="Delete a model from this disk",
        method="delete",
        body="OllamaName",
        examples=({"model": "hf.co/org/repo:Q4_K_M"},),
        answer=None,
        errors=(*_READ, 409),
        error="OllamaError",
    ),
)
