"""The OpenAPI 3.1 document of the server: every path with what it takes and answers, for clients and testers.

The tables are in openapi_openai.py, openapi_anthropic.py and openapi_llama.py; memfit's own paths are here.
They are exact: strict where a reader refuses, and silent about what it ignores. What one field has to do with
another, or with the model, is told in words beside 400.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from memfit import __version__
from memfit.server.openapi_anthropic import ANTHROPIC_COMPONENTS, ANTHROPIC_OPERATIONS
from memfit.server.openapi_bodies import COMPONENTS, OBJECT
from memfit.server.openapi_embeddings import EMBEDDING_COMPONENTS, EMBEDDING_OPERATIONS
from memfit.server.openapi_llama import LLAMA_COMPONENTS, LLAMA_OPERATIONS
from memfit.server.openapi_ollama import OLLAMA_COMPONENTS, OLLAMA_OPERATIONS
from memfit.server.openapi_openai import OPENAI_COMPONENTS, OPENAI_OPERATIONS
from memfit.server.openapi_schemas import (
    BOOLEAN,
    NULL,
    ApiOperation,
    Schema,
    closed,
    either,
    integer,
    list_of,
    named,
    optional,
    record,
    text,
    words,
)

__all__ = ["OPERATIONS", "openapi_document"]

_MOST = 2**63 - 1
_FEW = 4  # answers of a call, for testers

_SIZE = either(text(), integer(0, _MOST))
_SIZES = {"type": "object", "additionalProperties": _SIZE}
_BUDGET = {"ram": _SIZE, "vram": either(_SIZE, _SIZES), "rpc": _SIZES, "disk": BOOLEAN}
_APPLIED: dict[str, Schema] = {"budget": closed({}, _BUDGET), "workload": OBJECT}
_QUANTIZATION = record({**dict.fromkeys(("label", "name", "model"), text()), "size_bytes": integer(0)})
OWN_OPERATIONS = (
    ApiOperation(
        path="/health",
        prefixes=("/v1", ""),
        summary="Whether the model is loaded",
        answer=record({"status": words("ok")}),
        errors=(503,),
        public=True,
    ),
    ApiOperation(
        path="/metrics",
        needs="metrics",
        summary="Counts and times for Prometheus",
        answer=text(),
        media="text/plain",
        errors=(501,),
    ),
    ApiOperation(
        path="/activity",
        summary="Who is answered and who waits, what was computed so far, and the last answers; no texts",
        answer=OBJECT,
    ),
    ApiOperation(
        path="/plan",
        summary="The running plan, with what is held and used now",
        answer=record(
            {
                **dict.fromkeys(("model", "workload", "prediction", "config"), OBJECT),
                "state": words("loading", "ready", "failed", "closed"),
                **dict.fromkeys(("restarts", "held_bytes", "cells_in_use", "running", "waiting"), integer(0)),
            }
        ),
    ),
    ApiOperation(
        path="/plan",
        summary="What another budget or workload would take, or another model, also before its download",
        method="post",
        body="Price",
        examples=({"workload": {"context": 1024}},),
        answer=OBJECT,
        errors=(400, 404, 408, 413, 500, 503, 504),
    ),
    ApiOperation(
        path="/quantizations",
        summary="Of a repository on the hub, the largest first, and smaller models of its owner",
        answer=record({"quantizations": list_of(_QUANTIZATION), "smaller_models": list_of(text())}),
        parameters=(
            {
                "name": "model",
                "in": "query",
                "required": True,
                "description": "hf.co/org/repo",
                "schema": text(minLength=1),
            },
        ),
        errors=(400, 404, 500, 504),
    ),
    ApiOperation(
        path="/apply",
        summary="Load the model by another plan; what runs ends with an error",
        method="post",
        body="Apply",
        examples=({"workload": {"context": 1024}},),
        answer=OBJECT,
        needs="apply",  # which testers leave alone: each call takes seconds, and everybody's answers with it
        errors=(400, 408, 409, 413, 500, 503),
    ),
    ApiOperation(
        path="/openapi.json",
        summary="This document",
        answer=record({"openapi": text(), "info": OBJECT, "paths": OBJECT, "components": OBJECT}),
        parameters=(
            {
                "name": "max_tokens",
                "in": "query",
                "description": "For those who test the server by the document: bodies must limit their "
                "answers to this many tokens, and ask for few of them, and paths that this server refuses "
                "with 501 are left out. The server takes others all the same.",
                "schema": integer(1, 999_999_999),
            },
        ),
        errors=(400,),
    ),
)
# A new API is a table here.
OPERATIONS: tuple[ApiOperation, ...] = (
    *OWN_OPERATIONS,
    *OPENAI_OPERATIONS,
    *ANTHROPIC_OPERATIONS,
    *LLAMA_OPERATIONS,
    *OLLAMA_OPERATIONS,
    *EMBEDDING_OPERATIONS,
)
_COMPONENTS = {
    **COMPONENTS,
    **OPENAI_COMPONENTS,
    **ANTHROPIC_COMPONENTS,
    **LLAMA_COMPONENTS,
    **OLLAMA_COMPONENTS,
    **EMBEDDING_COMPONENTS,
    "Apply": closed({}, _APPLIED),
    "Price": closed({}, {**_APPLIED, "model": text()}),
}

_ERRORS = {
    400: "The body is not JSON, nested too deeply, or against its schema; or what is asked for cannot be "
    "done: a prompt that is empty or longer than the context, a grammar or JSON schema that cannot be "
    "enforced, a function that is not among the tools or there twice, fields that exclude each other, "
    "messages that the model's template refuses.",
    401: "The API key is missing or wrong.",
    403: "The Host or Origin is a stranger's.",
    404: "There is no such model.",
    409: "The model is being served.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "The queue is full.",
    500: "The model's worker has died, and is being started again; or the model failed.",
    501: "The server was told not to show this, or cannot do it.",
    503: "The model is not loaded, or no budget can serve this.",
    504: "The answer took too long.",
}
# What limits tokens → what does in the document for testers.
_LIMITS = {
    **dict.fromkeys(("Limit", "AnswerLimit", "OllamaLimit"), "AnswerLimit"),
    "OllamaOptions": "OllamaOptions",
}
_FORMS = ("Error", "AnthropicError", "OllamaError")
_BY_GUARD = (401, 403)  # before a path, and its API's form of errors, is known
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def openapi_document(
    *,
    names: Sequence[str],
    vocabulary: int,
    has_keys: bool,
    abilities: Collection[str] = (),
    most_tokens: int | None = None,
) -> dict[str, Any]:
    """Of a server whose model has these names and so many tokens.

    With `most_tokens`, bodies must limit their answers to as many, and what needs other `abilities` is left
    out: for those who test a server by it.
    """
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        if most_tokens is not None and operation.needs not in (None, *abilities):
            continue
        entry = _operation(operation, has_keys=has_keys)
        for prefix in operation.prefixes:
            path = prefix + operation.path
            identity = _identity(operation.method, path)
            paths.setdefault(path, {})[operation.method] = {"operationId": identity, **entry}
    schemas = {**_COMPONENTS, **_of_server(names, vocabulary, most_tokens)}
    if most_tokens is not None:
        schemas = {name: _limited(schema) for name, schema in schemas.items()}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "memfit",
            "version": __version__,
            "description": "Fields that are not named are ignored. Another path is answered with 404, "
            "another method with 405, and OPTIONS with 200.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {name: one for form in _FORMS for name, one in _failures(form).items()},
        },
    }
    if has_keys:
        document["components"]["securitySchemes"] = _KEYS
    return document


def _of_server(names: Sequence[str], vocabulary: int, most_tokens: int | None) -> dict[str, Schema]:
    """Components that no table can know."""
    most = most_tokens or _MOST
    code = either(text(), integer(), NULL)
    return {
        # llama-server's -1 and -2 are "until the model ends", 0 is an answer without a token.
        "Limit": integer(-2 if most_tokens is None else 1, most),
        "AnswerLimit": integer(1, most),
        "OllamaLimit": integer(-_MOST if most_tokens is None else 1, most),
        # Some models take an empty one: those that put a token before each text.
        "PromptText": text() if most_tokens is None else text(minLength=1),
        "Choices": integer(1, 128 if most_tokens is None else _FEW),
        "Token": integer(0, vocabulary - 1),
        "ModelName": words(*names),
        "Error": record(
            {"error": record({"message": text(), "type": text(), "param": optional(text()), "code": code})}
        ),
    }


def _identity(method: str, path: str) -> str:
    return "_".join([method, *(part.strip("{}") for part in path.strip("/").split("/"))])


def _operation(operation: ApiOperation, *, has_keys: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"summary": operation.summary, "responses": _responses(operation, has_keys)}
    if operation.parameters:
        entry["parameters"] = list(operation.parameters)
    if operation.body is not None:
        media: dict[str, Any] = {"schema": named(operation.body)}
        if operation.examples:
            media["examples"] = {
                str(number): {"value": value} for number, value in enumerate(operation.examples, 1)
            }
        entry["requestBody"] = {"required": True, "content": {"application/json": media}}
    if has_keys and not operation.public:
        entry["security"] = [{name: []} for name in _KEYS]
    return entry


def _limited(body: Schema) -> Schema:
    """A body with its limit of tokens as one that must be there, by no other name."""
    if "properties" not in body:
        return {**body, "anyOf": [_limited(one) for one in body["anyOf"]]} if "anyOf" in body else body
    limits = {name: _LIMITS[of] for name, schema in body["properties"].items() if (of := _limit_of(schema))}
    if not limits:
        return body
    name, schema = next(iter(limits.items()))
    properties = {other: one for other, one in body["properties"].items() if other not in limits}
    return {
        **body,
        "properties": {**properties, name: named(schema)},
        "required": sorted({*body["required"], name}),
    }


def _limit_of(schema: Schema) -> str | None:
    """The component that limits tokens, where the schema is one."""
    for one in (schema, *schema.get("anyOf", ())):
        name = str(one.get("$ref", "")).rpartition("/")[2]
        if name in _LIMITS:
            return name
    return None


def _responses(operation: ApiOperation, has_keys: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content[operation.media] = {"schema": operation.answer}
    if operation.stream:
        content[operation.stream] = {"schema": text()}
    answer = {"description": "The answer", **({"content": content} if content else {})}
    found: dict[str, Any] = {"200": answer}
    guarded = _BY_GUARD if has_keys and not operation.public else (403,)
    for status in sorted({*guarded, *operation.errors}):
        form = "Error" if status in _BY_GUARD else operation.error
        found[str(status)] = {"$ref": f"#/components/responses/{form}{status}"}
    return found


def _failures(form: str) -> dict[str, Any]:
    """Every status, with its error in one of the forms."""
    found: dict[str, Any] = {}
    for status, why in _ERRORS.items():
        content = {"application/json": {"schema": named(form)}}
        found[f"{form}{status}"] = {"description": why, "content": content}
    found[f"{form}429"]["headers"] = {"Retry-After": {"description": "Seconds", "schema": integer(1)}}
    return found
