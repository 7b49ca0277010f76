"""Anthropic's Messages: what a body asks for, and answers as events and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from answer_parts import PARTS, answer_of, data_of, streamed

from memfit.engines.chat_format import CallArguments, CallBegins, ReasoningPart, TextPart
from memfit.engines.requests import RANDOM_SEED, Progress, Sampling
from memfit.errors import EngineError, UsageError
from memfit.openai.answers import Frame
from memfit.openai.anthropic import read_anthropic
from memfit.openai.anthropic_answers import (
    AnthropicWriter,
    anthropic_error,
    anthropic_models,
    anthropic_token_count,
)
from memfit.openai.ask import AUTO, NONE, REQUIRED, Ask
from memfit.openai.model_facts import ModelFacts

_HELLO = [{"role": "user", "content": "Hello"}]
_TOOL = {
    "name": "weather",
    "description": "Of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
_IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def _read(**fields: Any) -> Ask:
    return read_anthropic({"max_tokens": 8, "messages": _HELLO, **fields}, defaults=Sampling())


def test_a_body_s_options_become_sampling() -> None:
    ask = _read(temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["\n", "END"], stream=True, model="m")
    assert ask.sampling == Sampling(
        max_tokens=8, temperature=0.5, top_p=0.9, top_k=7, stop=("\n", "END"), seed=RANDOM_SEED
    )
    assert (ask.stream, ask.model, ask.messages) == (True, "m", tuple(_HELLO))
    assert not _read(stream=None).stream


def test_what_services_want_is_ignored() -> None:
    ask = _read(
        metadata={"user_id": "a"},
        service_tier="auto",
        container={"id": "c"},
        cache_control={},
        x=1,
        mcp_servers=[],
    )
    assert ask == _read()


def test_counting_needs_no_limit() -> None:
    body = {
        "messages": _HELLO,
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Now."}],
    }
    ask = read_anthropic(body, defaults=Sampling(), counts_only=True)
    assert ask.messages[0] == {"role": "system", "content": "Be brief.\nNow."}
    with pytest.raises(UsageError, match=r"^max_tokens: got null, needed a whole number$"):
        read_anthropic(body, defaults=Sampling())


def test_no_messages_are_a_user_who_says_nothing() -> None:
    assert _read(messages=[]).messages == ({"role": "user", "content": ""},)


def test_blocks_become_messages() -> None:
    ask = _read(
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "it?"}],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I look.", "signature": ""},
                    {"type": "redacted_thinking", "data": "xyz"},
                    {"type": "text", "text": "One moment."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}},
                    {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Here:"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "Sun"}],
                    },
                    {"type": "tool_result", "tool_use_id": "t2", "content": "no city", "is_error": True},
                    {"type": "tool_result", "tool_use_id": "t9"},
                ],
            },
        ]
    )
    assert ask.messages == (
        {"role": "user", "content": "What is\nit?"},
        {
            "role": "assistant",
            "content": "One moment.",
            "reasoning_content": "I look.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Köln"}},
                },
                {"id": "t2", "type": "function", "function": {"name": "weather", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "Sun", "tool_call_id": "t1", "name": "weather"},
        {"role": "tool", "content": "Error: no city", "tool_call_id": "t2", "name": "weather"},
        {"role": "tool", "content": "", "tool_call_id": "t9"},
        {"role": "user", "content": "Here:"},
    )
    assert not ask.template.continues


def test_turns_of_one_role_become_one() -> None:
    ask = _read(
        messages=[*_HELLO, {"role": "user", "content": "There"}, {"role": "assistant", "content": "A"}]
    )
    assert ask.messages == (
        {"role": "user", "content": "Hello\nThere"},
        {"role": "assistant", "content": "A"},
    )
    assert ask.template.continues  # the assistant's text is a beginning


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, (AUTO, None, True)),
        ({"type": "auto"}, (AUTO, None, True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, (AUTO, None, False)),
        ({"type": "any"}, (REQUIRED, None, True)),
        ({"type": "tool", "name": "weather"}, (REQUIRED, "weather", True)),
        ({"type": "none"}, (NONE, None, True)),
    ],
)
def test_tool_choice(given: Any, expected: tuple[str, str | None, bool]) -> None:
    ask = _read(tools=[{**_TOOL, "type": "custom", "strict": True}], tool_choice=given)
    assert (ask.tool_choice, ask.function, ask.parallel_calls) == expected
    function = {"name": "weather", "description": "Of a city", "parameters": _TOOL["input_schema"]}
    assert ask.template.tools == ({"type": "function", "function": function},)


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"output_config": {"effort": "xhigh"}}, {"reasoning_effort": "high"}),
        ({"chat_template_kwargs": {"enable_thinking": False, "x": 1}}, {"enable_thinking": False, "x": 1}),
        ({}, {}),
    ],
)
def test_the_template_is_told(fields: dict[str, Any], values: dict[str, Any]) -> None:
    assert _read(**fields).template.values == values


def test_a_schema_is_read() -> None:
    def read(schema: dict[str, Any]) -> Any:
        return _read(output_config={"format": {"type": "json_schema", "schema": schema}}).schema

    assert read({"type": "integer"}) == {"type": "integer"}
    assert read({"foo": "bar"}) == {}  # the API's own example
    with pytest.raises(UsageError, match="foo"):
        read({"type": "integer", "foo": "bar"})


def test_a_billing_header_s_number_does_not_empty_the_cache() -> None:
    header = "x-anthropic-billing-header: cc_version=2.1; cch={};You are Claude Code."
    first, second = (
        [_read(system=header.format(number)), _read(system=[{"type": "text", "text": header.format(number)}])]
        for number in ("a5145", "b0000")
    )
    assert first == second
    assert first[0].messages[0]["content"].endswith("cch=;You are Claude Code.")
    assert _read(system="cch=a5145;").messages[0]["content"] == "cch=a5145;"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "1"}, "temperature"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"messages": None}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b"}]}]},
            "messages[0].content[0].input",
        ),
        ({"system": 5}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": ""}]}, "tools[0].name"),
        ({"tools": [_TOOL, _TOOL]}, "tools"),
        ({"tools": [{"name": "a", "input_schema": []}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [_TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        _read(**fields)
    assert caught.value.field == field
    assert str(caught.value).startswith(field.removesuffix(".type"))


@pytest.mark.parametrize(
    "block",
    [
        _IMAGE,
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a"}, _IMAGE]},
    ],
)
def test_an_image_is_no_fault_of_the_request(block: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="image input is not supported"):
        _read(messages=[{"role": "user", "content": [block]}])


def _message_of(frames: list[Frame]) -> dict[str, Any]:
    """What a client makes of a stream."""
    message: dict[str, Any] = {}
    for frame in frames:
        data = data_of(frame)
        assert frame.event == data["type"]
        if data["type"] == "message_start":
            message = data["message"]
        elif data["type"] == "content_block_start":
            assert data["index"] == len(message["content"])
            message["content"].append({**data["content_block"], "json": ""})
        elif data["type"] == "content_block_delta":
            block, delta = message["content"][data["index"]], data["delta"]
            field = {"input_json_delta": "partial_json"}.get(
                delta["type"], delta["type"].removesuffix("_delta")
            )
            block[{"partial_json": "json"}.get(field, field)] += delta[field]
        elif data["type"] == "content_block_stop":
            block = message["content"][data["index"]]
            text = block.pop("json")
            if block["type"] == "tool_use":
                block["input"] = json.loads(text)
        elif data["type"] == "message_delta":
            message |= data["delta"]
            message["usage"] |= data["usage"]
    assert frames[-1].event == "message_stop"
    return message


@pytest.mark.parametrize("parts", [PARTS, PARTS[:2], PARTS[2:4], PARTS[4:], ()])
def test_a_stream_and_a_body_say_the_same(parts: Any) -> None:
    answer = answer_of(parts, "tool_calls" if len(parts) > 4 else "stop")
    writer = AnthropicWriter(model="demo")
    message = _message_of(streamed(writer, parts, answer))
    assert message == writer.body([answer])
    assert message["content"]


def test_a_body_is_whole() -> None:
    body = AnthropicWriter(model="demo").body([answer_of(PARTS, "tool_calls")])
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "demo",
        "content": [
            {"type": "thinking", "thinking": "The user asks. ", "signature": ""},
            {"type": "text", "text": "I look it up.", "citations": None},
            {
                "type": "tool_use",
                "id": "call_1",
                "name": "weather",
                "input": {"city": {"name": "Köln"}},
                "caller": {"type": "direct"},
            },
            {"type": "tool_use", "id": "call_2", "name": "time", "input": {}, "caller": {"type": "direct"}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            "input_tokens": 15,
            "cache_read_input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_creation": None,
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 3},
            "server_tool_use": None,
            "inference_geo": None,
            "service_tier": "standard",
        },
    }


def test_the_events_of_a_stream() -> None:
    parts = (ReasoningPart("a"), TextPart("b"), TextPart("c"), TextPart("d"))
    frames = streamed(AnthropicWriter(model="demo"), parts, answer_of(parts))
    assert [(one.event, data_of(one).get("index")) for one in frames] == [
        *(("message_start", None), ("ping", None)),
        *(
            ("content_block_start", 0),
            ("content_block_delta", 0),
            ("content_block_delta", 0),
        ),  # its signature
        ("content_block_stop", 0),
        *(("content_block_start", 1), *[("content_block_delta", 1)] * 3, ("content_block_stop", 1)),
        *(("message_delta", None), ("message_stop", None)),
    ]
    usage = data_of(frames[0])["message"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (20, 0)


@pytest.mark.parametrize(
    ("reason", "stop", "expected"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", None, ("max_tokens", None)),
        ("tool_calls", None, ("tool_use", None)),
    ],
)
def test_why_it_stopped(reason: Any, stop: str | None, expected: tuple[str, str | None]) -> None:
    body = AnthropicWriter(model="demo").body([answer_of(PARTS[2:3], reason, stop=stop)])
    assert (body["stop_reason"], body["stop_sequence"]) == expected


def test_arguments_that_were_cut_off_are_kept() -> None:
    parts = (CallBegins(0, None, "f"), CallArguments(0, '{"a": '))
    writer = AnthropicWriter(model="demo")
    body = writer.body([answer_of(parts, "length")])
    assert body["content"][0]["input"] == {"INVALID_JSON": '{"a": '}
    assert data_of(next(iter(writer.part(0, parts[0], ()))))["content_block"]["id"].startswith("toolu_")


def test_a_stream_that_fails_ends_in_an_error() -> None:
    writer = AnthropicWriter(model="demo")
    assert [
        one.event for one in writer.progress(0, Progress(number=0, total=2, shared=0, processed=1, seconds=1))
    ] == ["ping"]
    (frame,) = writer.fail(EngineError("the worker died"))
    assert (frame.event, data_of(frame)["error"]) == (
        "error",
        {"type": "api_error", "message": "the worker died"},
    )
    (frame,) = writer.fail(UsageError("too long"))
    assert data_of(frame)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, "invalid_request_error"), (422, "invalid_request_error"), (401, "authentication_error")),
        *((404, "not_found_error"), (429, "rate_limit_error"), (500, "api_error"), (503, "overloaded_error")),
    ],
)
def test_an_error_s_type_is_of_its_status(status: int, kind: str) -> None:
    body = anthropic_error(UsageError("no"), status)
    assert body.pop("request_id").startswith("req_")
    assert body == {"type": "error", "error": {"type": kind, "message": "no"}}


def test_models_and_counts() -> None:
    model = ModelFacts(
        name="demo",
        size_bytes=1,
        digest="ab",
        modified=1700000000.9,
        family="llama",
        parameters=134_515_008,
        quantization="Q8_0",
        context=2048,
    )
    listed = anthropic_models([model])
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("demo", "demo", False)
    (one,) = listed["data"]
    assert (one["id"], one["created_at"], one["type"], one["max_input_tokens"]) == (
        *("demo", "2023-11-14T22:13:20Z", "model", 2048),
    )
    assert anthropic_models([]) == {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert anthropic_token_count(7) == {"input_tokens": 7}
    assert model.parameter_size == "135M"
