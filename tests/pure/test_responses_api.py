"""OpenAI's Responses: what a body asks for, and answers as events and whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from answer_parts import PARTS, answer_of, data_of, streamed

from memfit.engines.chat_format import CallBegins, Part, ReasoningPart, TextPart
from memfit.engines.requests import ChosenToken, Progress, Sampling
from memfit.errors import EngineError, UsageError
from memfit.openai.answers import Frame
from memfit.openai.ask import AUTO, NONE, REQUIRED, Ask
from memfit.openai.responses_answers import ResponsesWriter, responses_token_count
from memfit.openai.responses_api import read_responses

_TOOL = {"type": "function", "name": "weather", "description": "Of a city", "parameters": {"type": "object"}}
_OTHER = {"type": "function", "name": "time"}


def _read(**fields: Any) -> Ask:
    return read_responses({"input": "Hello", **fields}, defaults=Sampling())


def _messages(items: list[Any], **fields: Any) -> tuple[Any, ...]:
    return _read(input=items, **fields).messages


def test_a_body_s_options_become_sampling() -> None:
    ask = _read(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        seed=3,
        model="m",
        stream=True,
        parallel_tool_calls=False,
        truncation="auto",
    )
    assert ask.sampling == Sampling(
        max_tokens=9, temperature=0.5, top_p=0.9, presence_penalty=1, frequency_penalty=-1, seed=3
    )
    assert (ask.model, ask.stream, ask.parallel_calls, ask.truncates) == ("m", True, False, True)
    assert ask.messages == ({"role": "user", "content": "Hello"},)


def test_what_services_want_is_ignored() -> None:
    ask = _read(store=True, metadata={"a": "b"}, service_tier="auto", include=[], background=False, unknown=1)
    assert ask == _read()


def test_items_become_messages() -> None:
    messages = _messages(
        [
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "I look."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Köln"}'},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": '{"city'},
            {"type": "function_call_output", "call_id": "c1", "output": "Sun"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "no"}],
            },
            {
                "type": "reasoning",
                "encrypted_content": "x",
                "summary": [{"type": "summary_text", "text": "S"}],
            },
        ],
        instructions="You are kind.",
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}},
        {
            "id": "c2",
            "type": "function",
            "function": {"name": "weather", "arguments": {"INVALID_JSON": '{"city'}},
        },
    ]
    assert messages == (
        {"role": "system", "content": "You are kind.\nBe brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Wait.", "reasoning_content": "I look.", "tool_calls": calls},
        {"role": "tool", "content": "Sun", "tool_call_id": "c1", "name": "weather"},
        {"role": "tool", "content": "no", "tool_call_id": "c2", "name": "weather"},
        {"role": "assistant", "content": "", "reasoning_content": "S"},
    )


def test_an_answer_in_two_phases_is_one_message() -> None:
    items = [
        {"type": "message", "role": "assistant", "phase": "commentary", "content": "I count."},
        {"type": "message", "role": "assistant", "phase": "final_answer", "content": "Four."},
    ]
    assert _messages(items) == ({"role": "assistant", "content": "I count.\nFour."},)
    assert not _read(input=items).template.continues


@pytest.mark.parametrize(
    ("given", "choice", "function", "names"),
    [
        (None, AUTO, None, ["weather", "time"]),
        ("auto", AUTO, None, ["weather", "time"]),
        ("none", NONE, None, ["weather", "time"]),
        ("required", REQUIRED, None, ["weather", "time"]),
        ({"type": "function", "name": "time"}, REQUIRED, "time", ["weather", "time"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
            *(REQUIRED, None, ["time"]),
        ),
    ],
)
def test_tool_choice(given: Any, choice: str, function: str | None, names: list[str]) -> None:
    ask = _read(tools=[_TOOL, _OTHER], tool_choice=given)
    assert (ask.tool_choice, ask.function) == (choice, function)
    assert [tool["function"]["name"] for tool in ask.template.tools] == names
    assert ask.template.tools[-1] == {
        "type": "function",
        "function": {"name": "time", "parameters": {"type": "object"}},
    }


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"reasoning": {"effort": "low"}}, {"enable_thinking": True, "reasoning_effort": "low"}),
        ({"reasoning": {"effort": "none"}}, {"enable_thinking": False}),
        ({"reasoning": {"summary": "auto"}}, {}),
        ({"chat_template_kwargs": {"x": 1}}, {"x": 1}),
    ],
)
def test_the_template_is_told(fields: dict[str, Any], values: dict[str, Any]) -> None:
    assert _read(**fields).template.values == values


@pytest.mark.parametrize(
    ("given", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "name": "n", "schema": {"type": "integer"}}, {"type": "integer"}),
    ],
)
def test_a_format_becomes_a_schema(given: Any, schema: Any) -> None:
    assert _read(text={"format": given}).schema == schema


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
    ],
)
def test_logprobs(fields: dict[str, Any], logprobs: int | None) -> None:
    assert _read(**fields).logprobs == logprobs


def test_tools_of_the_service_itself_are_left_out_with_a_warning() -> None:
    hosted = [{"type": "web_search"}, {"type": "custom", "name": "patch"}, {"type": "web_search"}]
    ask = _read(tools=[hosted[0], _TOOL, *hosted[1:]], tool_choice="auto")
    assert [tool["function"]["name"] for tool in ask.tools] == ["weather"]
    assert ask.warnings == (
        'tools of type "web_search" are left out; nothing here runs them',
        'tools of type "custom" are left out; nothing here runs them',
    )
    assert _read(tools=[_TOOL]).warnings == ()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": None}, "input"),
        ({"input": ["a"]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "b"}]}, "input[0].call_id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"instructions": 5}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": 5}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "all"}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "name": "a"}}, "tool_choice.name"),
        ({"tools": [_TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"if": {}}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": 5, "schema": {}}}}, "text.format.name"),
        ({"reasoning": {"summary": 5}}, "reasoning.summary"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"user": 5}, "user"),
        ({"max_tool_calls": "5"}, "max_tool_calls"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"truncation": "always"}, "truncation"),
        ({"stream": 1}, "stream"),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        _read(**fields)
    assert caught.value.field == field
    assert str(caught.value).startswith(field.removesuffix(".type"))


def test_an_image_is_no_fault_of_the_request() -> None:
    part = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    with pytest.raises(EngineError, match="image input is not supported"):
        _read(input=[{"role": "user", "content": [part]}])


def _writer(**fields: Any) -> ResponsesWriter:
    body = {"input": "Hello", **fields}
    return ResponsesWriter(body, read_responses(body, defaults=Sampling()), model="demo")


def _output_of(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """What a client makes of a stream's pieces, without its whole texts."""
    output: list[dict[str, Any]] = []
    for number, frame in enumerate(frames):
        data = data_of(frame)
        assert (frame.event, data["sequence_number"]) == (data["type"], number)
        kind = data["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert data["output_index"] == len(output)
            output.append(data["item"])
        elif kind == "content_part.added":
            assert output[data["output_index"]]["id"] == data["item_id"]
            output[data["output_index"]]["content"].append(data["part"])
        elif kind.endswith(".delta"):
            item = output[data["output_index"]]
            if item["type"] == "function_call":
                item["arguments"] += data["delta"]
            else:
                item["content"][data["content_index"]]["text"] += data["delta"]
        elif kind == "output_item.done":
            output[data["output_index"]]["status"] = data["item"]["status"]
            assert output[data["output_index"]] == data["item"]
    return output


def _without_ids(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "id"} for item in output]


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("parts", [PARTS, PARTS[:2], PARTS[2:4], PARTS[4:], ()])
def test_a_stream_and_a_body_say_the_same(parts: Sequence[Part], reason: Any) -> None:
    answer = answer_of(parts, reason)
    writer = _writer()
    frames = streamed(writer, parts, answer)
    last = data_of(frames[-1])["response"]
    body = writer.body([answer])
    assert _output_of(frames) == last["output"]
    assert _without_ids(last.pop("output")) == _without_ids(body.pop("output"))
    assert last | {"completed_at": 0} == body | {"completed_at": 0}
    assert body["status"] == {"stop": "completed", "length": "incomplete"}[reason]


def test_a_body_is_whole() -> None:
    writer = _writer(
        instructions="Be kind.",
        tools=[{"type": "web_search"}, _TOOL],  # the first is left out
        tool_choice="auto",
        metadata={"a": "b"},
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        max_output_tokens=9,
        temperature=0.5,
        user="me",
    )
    body = writer.body([answer_of(PARTS, "tool_calls")])
    assert body["id"].startswith("resp_")
    assert isinstance(body["created_at"], int) and isinstance(body["completed_at"], int)
    assert [item["id"].split("_")[0] for item in body["output"]] == ["rs", "msg", "fc", "fc"]
    assert _without_ids(body["output"]) == [
        {
            "type": "reasoning",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "The user asks. "}],
        },
        {
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look it up.", "annotations": [], "logprobs": []}],
        },
        {
            "type": "function_call",
            "status": "completed",
            "call_id": "call_1",
            "name": "weather",
            "arguments": '{"city": {"name": "Köln"}}',
        },
        {
            "type": "function_call",
            "status": "completed",
            "call_id": "call_2",
            "name": "time",
            "arguments": "{}",
        },
    ]
    for name in ("id", "created_at", "completed_at", "output"):
        del body[name]
    assert body == {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": "Be kind.",
        "max_output_tokens": 9,
        "max_tool_calls": None,
        "model": "demo",
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "safety_identifier": None,
        "reasoning": {"effort": "low", "summary": "auto"},
        "service_tier": "default",
        "store": False,
        "background": False,
        "temperature": 0.5,
        "top_p": 0.95,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "text": {
            "format": {
                "type": "json_schema",
                "name": "answer",
                "description": None,
                "schema": {"type": "object"},
                "strict": False,
            },
            "verbosity": "medium",
        },
        "tool_choice": "auto",
        "tools": [{**_TOOL, "strict": False}],
        "top_logprobs": 0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 20,
            "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
            "output_tokens": 9,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 29,
        },
        "user": "me",
    }


def test_the_events_of_a_stream() -> None:
    parts = (ReasoningPart("a"), TextPart("b"), TextPart("c"), CallBegins(0, "c1", "f"))
    frames = streamed(_writer(), parts, answer_of(parts, "tool_calls"))
    assert [str(one.event).removeprefix("response.") for one in frames] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]


def test_tokens_come_with_their_text() -> None:
    token = ChosenToken(
        token=1, piece=b"\xc3", logprob=-0.25, top=((1, b"\xc3", -0.25), (2, b"b", float("-inf")))
    )
    entry = {
        "token": "\N{REPLACEMENT CHARACTER}",
        "logprob": -0.25,
        "bytes": [0xC3],
        "top_logprobs": [
            {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -0.25, "bytes": [0xC3]},
            {"token": "b", "logprob": -9999.0, "bytes": [98]},
        ],
    }
    writer = _writer(top_logprobs=2)
    parts = (TextPart("a"), TextPart("b"))
    answer = answer_of(parts, tokens=(token, token))
    frames = streamed(writer, parts, answer, [token, token])
    found = {frame.event: data_of(frame) for frame in frames}
    assert found["response.output_text.delta"]["logprobs"] == [entry]
    assert found["response.output_text.done"]["logprobs"] == [entry, entry]
    assert found["response.completed"]["response"]["output"][0]["content"][0]["logprobs"] == [entry, entry]
    assert writer.body([answer])["output"][0]["content"][0]["logprobs"] == [entry, entry]


def test_telemetry_is_told_where_it_is_asked_for() -> None:
    body = {"input": "Hello", "timings_per_token": True, "return_progress": True}
    ask = read_responses(body, defaults=Sampling())
    assert ask.tells_progress and ask.names_tokens
    writer = ResponsesWriter(body, ask, model="demo")
    progress = Progress(number=0, total=20, shared=5, processed=15, seconds=0.5)
    (frame,) = writer.progress(0, progress)
    assert (frame.event, data_of(frame)["prompt_progress"]) == (
        "response.in_progress",
        {"total": 20, "cache": 5, "processed": 15, "time_ms": 500},
    )
    parts, token = PARTS[2:4], ChosenToken(token=1, piece=b"a")
    *_, first, second = [*writer.part(0, parts[0], [token]), *writer.part(0, parts[1], [token, token])]
    told = data_of(second)["timings"]
    assert (told["cache_n"], told["prompt_n"], told["prompt_per_second"], told["predicted_n"]) == (
        5,
        10,
        20.0,
        3,
    )
    assert data_of(first)["timings"]["predicted_per_second"] == 0.0
    answer = answer_of(parts, "length")
    *_, last = [*writer.finish(0, answer), *writer.end([answer])]
    assert last.event == "response.completed"  # all that llama-server's clients know
    assert data_of(last)["response"]["status"] == "incomplete"
    assert data_of(last)["timings"]["prompt_per_second"] == 30.0
    assert "timings" not in data_of(streamed(_writer(), parts, answer)[-1])


def test_a_stream_that_fails_keeps_what_came() -> None:
    writer = _writer()
    frames = [*writer.begin(3), *writer.part(0, PARTS[2], ()), *writer.fail(EngineError("the worker died"))]
    last = data_of(frames[-1])
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the worker died"}
    assert last["response"]["output"] == _output_of(frames)
    assert last["response"]["output"][0]["content"][0]["text"] == "I look"
    (last_frame,) = _writer().fail(UsageError("too long"))
    assert data_of(last_frame)["response"]["error"]["code"] == "invalid_prompt"


def test_a_count_of_tokens() -> None:
    assert responses_token_count(7) == {"object": "response.input_tokens", "input_tokens": 7}
