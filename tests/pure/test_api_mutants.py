"""Bodies with something else in one place: each is read, or refused by name; nothing else is ever raised."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from answer_parts import PARTS, answer_of, streamed

import thorough
from memfit.engines.requests import Sampling
from memfit.errors import MemfitError
from memfit.openai.answers import AnswerWriter
from memfit.openai.anthropic import read_anthropic
from memfit.openai.anthropic_answers import AnthropicWriter
from memfit.openai.ask import Ask
from memfit.openai.ollama import loads_only, read_ollama_chat, read_ollama_embed, read_ollama_generate
from memfit.openai.ollama_answers import OllamaWriter
from memfit.openai.responses_answers import ResponsesWriter
from memfit.openai.responses_api import read_responses

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_ANTHROPIC = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=a5145; Be kind."}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "1", "is_error": True}],
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
}
_RESPONSES = {
    "model": "m",
    "instructions": "Be kind.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "1"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "1"}]},
    ],
    "tools": [
        {"type": "function", "name": "f", "description": "F", "parameters": _SCHEMA, "strict": True},
        {"type": "web_search"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": _SCHEMA, "strict": True}},
    "metadata": {"a": "b"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "max_output_tokens": 9,
    "truncation": "auto",
    "user": "me",
    "stream": True,
    "timings_per_token": True,
    "return_progress": True,
    "previous_response_id": None,
    "background": False,
}
_CHAT = {
    "model": "m",
    "messages": [
        {"role": "user", "content": "Hello", "images": []},
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm.",
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "1", "tool_name": "f", "tool_call_id": None},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "F", "parameters": _SCHEMA}}],
    "options": {"num_predict": 9, "temperature": 0.5, "seed": 1, "stop": ["END"], "num_ctx": 9},
    "format": _SCHEMA,
    "think": "low",
    "keep_alive": "5m",
    "logprobs": True,
    "top_logprobs": 2,
    "truncate": True,
    "stream": False,
}
_GENERATE = {
    **{name: _CHAT[name] for name in ("model", "options", "format", "think", "keep_alive", "stream")},
    "prompt": "Hello",
    "system": "Be kind.",
    "suffix": "",
    "template": "",
    "context": [],
    "raw": False,
}
_EMBED = {"model": "m", "input": ["a", "b"], "truncate": True, "dimensions": 2}
_OTHERS: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        21,
        2**31,
        2**63,
        10**400,
        0.5,
        -0.5,
        float("inf"),
        1e308,
        "",
        "a",
        "auto",
    ),
    *("\ud800", "\x00", "none", "required", "tool", "json", [], [None], [[]], ["a"], {}, {"type": "text"}),
    *({"type": "image"}, {"type": []}, {"a": {"b": [1]}}, [{}], [{"type": "function"}], "9" * 50, "-5m"),
)

_Read = Callable[[Mapping[str, Any]], Any]


def _asks(read: Callable[..., Ask], writer: Callable[[Mapping[str, Any], Ask], AnswerWriter]) -> _Read:
    """Reading, and writing an answer to what was read."""

    def run(body: Mapping[str, Any]) -> None:
        ask = read(body, defaults=Sampling())
        answer = answer_of(PARTS, "tool_calls")
        made = writer(body, ask)
        frames = [frame.data for frame in streamed(made, PARTS, answer)]
        json.dumps([*frames, made.body([answer])])

    return run


_READERS: dict[str, tuple[Mapping[str, Any], _Read]] = {
    "anthropic": (_ANTHROPIC, _asks(read_anthropic, lambda body, ask: AnthropicWriter(model="m"))),
    "responses": (_RESPONSES, _asks(read_responses, lambda body, ask: ResponsesWriter(body, ask, model="m"))),
    "chat": (_CHAT, _asks(read_ollama_chat, lambda body, ask: OllamaWriter("chat", ask, model="m"))),
    "generate": (
        _GENERATE,
        _asks(read_ollama_generate, lambda body, ask: OllamaWriter("generate", ask, model="m")),
    ),
    "loading": (_CHAT, lambda body: loads_only({**body, "messages": []}, "chat")),
    "embed": (_EMBED, read_ollama_embed),
}


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every key of every object, and every index of every list."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


@pytest.mark.parametrize("name", _READERS)
def test_a_whole_body_is_read(name: str) -> None:
    body, run = _READERS[name]
    run(body)


@pytest.mark.parametrize("name", _READERS)
def test_another_value_in_any_place_is_read_or_refused(name: str) -> None:
    body, run = _READERS[name]
    refused = tried = 0
    for number in range(len(list(_places(body)))):
        for other in _OTHERS:
            mutant = copy.deepcopy(body)
            parent, key = list(_places(mutant))[number]
            parent[key] = copy.deepcopy(other)
            tried += 1
            refused += _is_refused(run, mutant)
    assert 0 < refused < tried


@pytest.mark.parametrize("name", _READERS)
def test_several_at_once(name: str) -> None:
    body, run = _READERS[name]
    chance = random.Random(name)
    for _ in range(thorough.times(100, 5000)):
        mutant = copy.deepcopy(body)
        for _ in range(chance.randint(2, 5)):
            places = list(_places(mutant))
            parent, key = chance.choice(places)
            if chance.random() < 0.3:
                del parent[key]
            else:
                parent[key] = copy.deepcopy(chance.choice(_OTHERS))
            if not mutant:
                break
        _is_refused(run, mutant)


def _is_refused(run: _Read, body: Mapping[str, Any]) -> bool:
    try:
        run(body)
    except MemfitError as error:
        assert error.field, error
        json.dumps(error.to_json())
        return True
    return False
