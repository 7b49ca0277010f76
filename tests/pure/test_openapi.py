"""The server's OpenAPI document: every route is in it, and its schemas say what the readers take."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from fakes import make_plan_value
from starlette.routing import Mount, Route

from memfit.engines.requests import Sampling
from memfit.engines.session import Session
from memfit.errors import EngineError, MemfitError
from memfit.openai.anthropic import read_anthropic
from memfit.openai.chat import read_chat, read_completion
from memfit.openai.embeddings import read_embeddings, read_rerank
from memfit.openai.llama_asks import read_infill, read_llama_completion, response_fields
from memfit.openai.ollama import (
    loads_only,
    read_ollama_chat,
    read_ollama_embed,
    read_ollama_embeddings,
    read_ollama_generate,
)
from memfit.openai.responses_api import read_responses
from memfit.server.app import make_app
from memfit.server.openapi import OPERATIONS, openapi_document
from memfit.server.openapi_bodies import INTEGER
from memfit.server.settings import Settings

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_FUNCTION = {"name": "f", "description": "F", "parameters": _SCHEMA}
_SHARED = {
    "model": "m",
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.5,
    "top_n_sigma": 1,
    "repeat_penalty": 1.1,
    "frequency_penalty": 0.1,
    "mirostat": 1,
    "dry_penalty_last_n": -1,
    "logit_bias": {"1": 2.5, "x": False},
    "ignore_eos": False,
    "seed": 1,
    "stop": ["END"],
    "n": 1,
    "stream": True,
    "stream_options": {"include_usage": True},
    "timings_per_token": False,
}
_BODIES: dict[str, dict[str, Any]] = {
    "Chat": {
        **_SHARED,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "1", "tool_call_id": "c"},
            {"role": "assistant", "content": "1", "tool_calls": []},
            {"role": "user", "content": "Thanks"},
        ],
        "max_tokens": 9,
        "tools": [{"type": "function", "function": _FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": True,
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": True},
        "modalities": ["text"],
        "audio": None,
    },
    "Completion": {
        **_SHARED,
        "prompt": ["Hello", [1, "x", 2], {"prompt_string": "a"}],
        "max_tokens": 9,
        "logprobs": 2,
        "echo": True,
        "suffix": None,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA}},
    },
    "LlamaCompletion": {
        **_SHARED,
        "prompt": [1, 2, "x"],
        "n_predict": -1,
        "n_probs": 3,
        "post_sampling_probs": True,
        "response_fields": ["content"],
        "grammar": "root ::= 'a'",
        "logit_bias": [[1, 2.5], ["x", False]],
    },
    "Infill": {
        "input_prefix": "a",
        "input_suffix": "b",
        "prompt": "c",
        "input_extra": [{"text": "d"}],
        "n_predict": 9,
    },
    "Messages": {
        "model": "m",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Be kind."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": "1", "is_error": True}],
            },
        ],
        "tools": [{"name": "f", "description": "F", "input_schema": _SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": _SCHEMA}},
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "top_k": 5,
        "stream": True,
        "chat_template_kwargs": {},
        "mcp_servers": [],
    },
    "Responses": {
        "model": "m",
        "instructions": "Be kind.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "1"}]},
        ],
        "tools": [{"type": "function", **_FUNCTION}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "f"}]},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": _SCHEMA}},
        "metadata": {"a": "b"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "max_output_tokens": 9,
        "max_tool_calls": 1,
        "truncation": "auto",
        "user": "me",
        "stream": True,
        "previous_response_id": None,
        "background": False,
    },
    "OllamaChat": {
        "model": "m",
        "messages": [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "content": "",
                "thinking": "Hm.",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "1", "tool_name": "f", "tool_call_id": None},
        ],
        "tools": [{"type": "function", "function": _FUNCTION}],
        "options": {"num_predict": 9, "temperature": 0.5, "seed": 1, "stop": ["END"], "num_ctx": 9},
        "format": _SCHEMA,
        "think": "low",
        "keep_alive": "5m",
        "logprobs": True,
        "top_logprobs": 2,
        "stream": False,
    },
    "OllamaGenerate": {
        "model": "m",
        "prompt": "Hello",
        "system": "Be kind.",
        "suffix": "",
        "template": "",
        "context": [],
        "options": {"num_predict": 9, "mirostat": 1},
        "format": "json",
        "think": True,
        "keep_alive": -1,
    },
    "Embeddings": {
        "model": "m",
        "input": ["a", [1, 2]],
        "encoding_format": "base64",
        "dimensions": 2,
        "embd_normalize": 2,
    },
    "Rerank": {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True},
    "OllamaEmbed": {"model": "m", "input": ["a", "b"], "truncate": True, "dimensions": 2},
    "OllamaEmbeddings": {"model": "m", "prompt": "a"},
}


def _ollama_chat(body: Mapping[str, Any], *, defaults: Sampling) -> None:
    if not loads_only(body, "chat"):
        read_ollama_chat(body, defaults=defaults)


def _ollama_generate(body: Mapping[str, Any], *, defaults: Sampling) -> None:
    if not loads_only(body, "generate"):
        read_ollama_generate(body, defaults=defaults)


def _infill(body: Mapping[str, Any], *, defaults: Sampling) -> None:
    read_infill(body, defaults=defaults)
    response_fields(body)


def _llama(body: Mapping[str, Any], *, defaults: Sampling) -> None:
    read_llama_completion(body, defaults=defaults)
    response_fields(body)


_READERS: dict[str, Callable[..., Any]] = {
    "Chat": read_chat,
    "Completion": read_completion,
    "LlamaCompletion": _llama,
    "Infill": _infill,
    "Messages": read_anthropic,
    "Responses": read_responses,
    "OllamaChat": _ollama_chat,
    "OllamaGenerate": _ollama_generate,
    "Embeddings": lambda body, defaults: read_embeddings(body),
    "Rerank": lambda body, defaults: read_rerank(body),
    "OllamaEmbed": lambda body, defaults: read_ollama_embed(body),
    "OllamaEmbeddings": lambda body, defaults: read_ollama_embeddings(body),
}
_OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, -3, 1, 21, 101, 1001, 2**31, 2**63, 0.5, -0.5, "", "a", "x" * 5000),
    *("auto", "none", "required", "text", "low", [], [None], ["a"], [1], [[1, 2]], [{}], [{"text": "a"}]),
    *({}, {"type": "text", "text": "a"}, {"type": "json_object"}, {"type": []}, {"name": "f"}),
)
# What no schema says: the beginning of a refusal of a body that has the document's form.
_RULES = re.compile(
    r"best_of|format at |system: a raw prompt|tool_choice: (there is no function|a call is required)"
    r"|tool_choice\S*: got .*, needed one of the tools|tool_choice: a tool must be called"
    r"|grammar and |response_format and tools|grammar:|json_schema\b|\S*schema at "
    r"|messages: |continue_final_message|\S*arguments: got .*, needed the JSON of an object|Sampling"
)


def _document(**settings: Any) -> dict[str, Any]:
    return openapi_document(**{"names": ("m",), "vocabulary": 100, "has_keys": False, **settings})


def _validator(name: str, document: Mapping[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    )


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _mutants(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The body with another value in one place, or without it."""
    for number in range(len(list(_places(body)))):
        for other in (*_OTHERS, ...):
            mutant = copy.deepcopy(dict(body))
            parent, key = list(_places(mutant))[number]
            if other is ...:
                del parent[key]
            else:
                parent[key] = copy.deepcopy(other)
            yield mutant


def _refusal(name: str, body: Mapping[str, Any]) -> str | None:
    try:
        _READERS[name](body, defaults=Sampling())
    except MemfitError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", _BODIES)
def test_the_document_takes_what_readers_take(name: str) -> None:
    document = _document()
    document["components"]["schemas"]["Token"] = INTEGER  # only the model knows its vocabulary
    validator = _validator(name, document)
    assert _refusal(name, _BODIES[name]) is None
    assert not list(validator.iter_errors(_BODIES[name]))
    wrong = {}
    for mutant in _mutants(_BODIES[name]):
        refusal = _refusal(name, mutant)
        if refusal is None and not validator.is_valid(mutant):
            wrong[f"taken: {next(validator.iter_errors(mutant)).message[:300]}"] = mutant
        if refusal is not None and validator.is_valid(mutant) and not _RULES.match(refusal):
            wrong[f"refused: {refusal}"] = mutant
    assert not wrong, "\n".join(wrong)


def test_every_route_is_in_the_document() -> None:
    app = make_app(make_plan_value(), _no_model, _SETTINGS, lambda _: None, lambda _: None)
    routes = set()
    for route in app.routes:
        if isinstance(route, Mount):  # the page's files
            continue
        assert isinstance(route, Route)
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        routes |= {(path, method.lower()) for method in (route.methods or set()) - {"HEAD"}}
    paths = _document()["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == routes


def test_every_reference_leads_somewhere() -> None:
    document = _document()
    names = set(re.findall(r'"#/components/(\w+)/(\w+)"', json.dumps(document)))
    assert {kind for kind, _ in names} == {"schemas", "responses"}
    assert all(name in document["components"][kind] for kind, name in names)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_examples_fit_their_bodies() -> None:
    for operation in OPERATIONS:
        assert operation.body is None or operation.examples or operation.path == "/infill"
        for example in operation.examples:
            assert operation.body
            for most in (None, 8):
                _validator(operation.body, _document(most_tokens=most)).validate(example)


def test_a_document_for_testers_limits_answers() -> None:
    document = _document(most_tokens=16)
    short = {**_BODIES["OllamaChat"], "options": {"num_predict": 16}}
    assert _validator("OllamaChat", document).is_valid(short)
    assert not _validator("OllamaChat", document).is_valid({**short, "options": {}})
    assert not _validator("OllamaChat", document).is_valid({**short, "options": None})
    for name, limit in (("Chat", "max_tokens"), ("LlamaCompletion", "n_predict"), ("Messages", "max_tokens")):
        limited, body = _validator(name, document), copy.deepcopy(_BODIES[name])
        assert not limited.is_valid({**body, limit: 17})
        assert not limited.is_valid({**body, limit: None})
        assert limited.is_valid({**body, limit: 16})
    assert not _validator("Chat", document).is_valid({**_BODIES["Chat"], "n": 128})
    assert _validator("Chat", _document()).is_valid({**_BODIES["Chat"], "n": 128})
    assert _validator("Chat", _document()).is_valid({**_BODIES["Chat"], "max_tokens": None})


def test_testers_see_no_path_that_is_refused() -> None:
    everything = set(_document()["paths"])
    able = set(_document(most_tokens=16, abilities={"slots", "embeddings", "reranking"})["paths"])
    assert everything - able == {"/apply", "/infill", "/metrics"}


def test_keys_are_asked_for_where_the_server_has_some() -> None:
    paths = _document(has_keys=True)["paths"]
    assert "401" in paths["/plan"]["get"]["responses"] and paths["/plan"]["get"]["security"]
    assert "401" not in paths["/health"]["get"]["responses"] and "security" not in paths["/health"]["get"]
    free = {path for path, methods in paths.items() for one in methods.values() if "security" not in one}
    assert free == {"/", "/health", "/v1/health"}
    assert "401" not in _document()["paths"]["/plan"]["get"]["responses"]


@pytest.mark.parametrize(
    ("path", "status", "found"),
    [
        ("/openapi.json", 200, '"openapi":"3.1.0"'),
        ("/openapi.json?max_tokens=16", 200, '"maximum":16}'),
        ("/openapi.json?max_tokens=0", 400, "max_tokens"),
        ("/openapi.json?max_tokens=\u0663", 400, "max_tokens"),
        ("/nowhere", 404, "not_found_error"),
    ],
)
def test_the_path_of_the_document(path: str, status: int, found: str) -> None:
    response = _get(path)
    assert response.status == status
    assert found in response.text


def test_a_method_that_is_refused_names_those_that_are_not() -> None:
    response = _get("/v1/chat/completions")
    assert (response.status, response.headers["allow"]) == (405, "POST")


_SETTINGS = Settings(names=("m",))


def _no_model(*_: object) -> Session:
    raise EngineError("there is none")


@dataclass(frozen=True, kw_only=True)
class _Response:
    status: int
    headers: dict[str, str]
    text: str


def _get(path: str) -> _Response:
    """Without a model: paths that ask none of it."""
    app = make_app(make_plan_value(), _no_model, _SETTINGS, lambda _: None, lambda _: None)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": quote(query, safe="=").encode(),
        "headers": [(b"host", b"localhost")],
        "scheme": "http",
        "server": ("localhost", 80),
    }

    async def run() -> None:
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)

    asyncio.run(run())
    start, *bodies = sent
    headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    text = b"".join(body.get("body", b"") for body in bodies).decode()
    return _Response(status=start["status"], headers=headers, text=text)


def test_the_examples_of_the_docs_fit_the_document() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    address = r"'?http://127\.0\.0\.1:8080([^\s?']+)(?:\?[^\s']+)?'?"
    call = re.compile(rf"^curl (?:-N )?{address}(?:[ \\\n]+-d '(.+?)')?$", re.M | re.S)
    calls = call.findall(page)
    assert len(calls) == page.count("\ncurl ")
    document = _document(vocabulary=49152)
    for path, body in calls:
        entry = document["paths"][path]["post" if body else "get"]
        if body:
            reference = entry["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            _validator(reference.rpartition("/")[2], document).validate(json.loads(body))
    named = set(re.findall(r"`(/[^`?]*?)`", page))
    known = {path.replace("{name}", "NAME") for path in document["paths"]}
    assert named - known == {"/v1"}
