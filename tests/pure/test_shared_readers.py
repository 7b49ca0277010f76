"""What the readers of all APIs share: sampling by tables of names, tools, contents, schemas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from memfit.engines.requests import RANDOM_SEED, Sampling
from memfit.errors import UsageError
from memfit.openai.anthropic import read_anthropic
from memfit.openai.ask import AUTO, REQUIRED, Ask
from memfit.openai.chat import read_chat
from memfit.openai.ollama import read_ollama_chat
from memfit.openai.responses_api import read_responses

_HELLO = [{"role": "user", "content": "Hello"}]


def _chat(**fields: Any) -> Ask:
    return read_chat({"messages": _HELLO, **fields}, defaults=Sampling())


def _anthropic(**fields: Any) -> Ask:
    return read_anthropic({"messages": _HELLO, "max_tokens": 9, **fields}, defaults=Sampling())


def _responses(**fields: Any) -> Ask:
    return read_responses({"input": "Hello", **fields}, defaults=Sampling())


def _ollama(**fields: Any) -> Ask:
    return read_ollama_chat({"messages": _HELLO, **fields}, defaults=Sampling())


def _nested(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


_TOOLS: list[tuple[Callable[..., Ask], Callable[[Any], dict[str, Any]]]] = [
    (_chat, _nested),
    (_ollama, _nested),
    (_anthropic, lambda name: {"name": name}),
    (_responses, lambda name: {"type": "function", "name": name}),
]


def test_an_option_has_several_names_and_one_value() -> None:
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        assert _chat(**{name: 5}).sampling.max_tokens == 5
    assert _chat(repetition_penalty=1.5, seed=-1).sampling == Sampling(repeat_penalty=1.5, seed=RANDOM_SEED)
    with pytest.raises(UsageError, match="repeat_penalty and repetition_penalty are the same") as caught:
        _chat(repetition_penalty=1.5, repeat_penalty=1.5)
    assert caught.value.field == "repeat_penalty"


def test_of_several_limits_the_lowest_holds() -> None:
    assert _chat(n_predict=5, max_tokens=9, max_completion_tokens=7).sampling.max_tokens == 5
    assert _chat(n_predict=-1, max_completion_tokens=7).sampling.max_tokens == 7
    assert _chat(max_tokens=None, n_predict=5).sampling.max_tokens == 5
    assert _chat(n_predict=-2).sampling.max_tokens is None


def test_stop_strings_are_few_and_short() -> None:
    for read, name in ((_chat, "stop"), (_anthropic, "stop_sequences"), (_responses, "stop")):
        assert read(**{name: ["a"] * 256}).sampling.stop == ("a",) * 256
        for wrong in (["a"] * 257, ["a" * 4097], [None]):
            with pytest.raises(UsageError) as caught:
                read(**{name: wrong})
            assert caught.value.field == name
    assert _anthropic(stop_sequences=["", "a"]).sampling.stop == ("a",)


@pytest.mark.parametrize(("read", "tool"), _TOOLS)
def test_tools_are_not_endless(read: Callable[..., Ask], tool: Callable[[Any], dict[str, Any]]) -> None:
    assert len(read(tools=[tool(f"f{index}") for index in range(512)]).tools) == 512
    assert read(tools=[tool("f" * 256)]).tools[0]["function"]["parameters"] == {"type": "object"}
    many = [tool(f"f{index}") for index in range(513)]
    for wrong in (many, [tool("f" * 257)], [tool("")], [tool(None)], [tool("f"), tool("f")], {}, [[]]):
        with pytest.raises(UsageError) as caught:
            read(tools=wrong)
        assert caught.value.field is not None and caught.value.field.startswith("tools")


def test_the_tools_of_a_chat_are_chosen() -> None:
    tools = [_nested("f"), _nested("g")]
    ask = _chat(tools=tools, tool_choice=_nested("g"))
    assert (ask.tool_choice, ask.function, len(ask.tools)) == (REQUIRED, "g", 2)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [_nested("g")]}}
    ask = _chat(tools=tools, tool_choice=allowed)
    assert (ask.tool_choice, [one["function"]["name"] for one in ask.tools]) == (AUTO, ["g"])
    old = _chat(functions=[{"name": "f"}], function_call={"name": "f"})
    assert (old.function, old.tools[0]["function"]["name"]) == ("f", "f")
    assert _chat(tool_choice="none").tools == ()
    for choice, field in (
        ("all", "tool_choice"),
        (_nested("h"), "tool_choice.function.name"),
        ({"type": "custom"}, "tool_choice.type"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}},
            "tool_choice.allowed_tools.mode",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            _chat(tools=tools, tool_choice=choice)
        assert caught.value.field == field


def test_contents_are_texts_or_parts_of_them() -> None:
    parts = [{"type": "text", "text": "One", "cache_control": {}}, {"type": "text", "text": "two"}]
    assert _chat(messages=[{"role": "user", "content": parts}]).messages[0]["content"] == "One\ntwo"
    with pytest.raises(UsageError, match="image input is not supported"):
        _chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    with pytest.raises(UsageError) as caught:
        _chat(messages=[{"role": "user", "content": None}])
    assert caught.value.field == "messages[0].content"


def test_a_call_whose_arguments_are_no_object_is_kept_in_one() -> None:
    calls = [{"function": {"name": "f", "arguments": text}} for text in ('{"a": 1}', "", "[1", {"b": 2})]
    message = _chat(messages=[*_HELLO, {"role": "assistant", "tool_calls": calls}, *_HELLO]).messages[1]
    found = [call["function"]["arguments"] for call in message["tool_calls"]]
    assert found == [{"a": 1}, {}, {"INVALID_JSON": "[1"}, {"b": 2}]


@pytest.mark.parametrize(
    ("read", "field", "fields"),
    [
        (_chat, "json_schema", lambda schema: {"json_schema": schema}),
        (
            _chat,
            "response_format.json_schema.schema",
            lambda schema: {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        ),
        (_ollama, "format", lambda schema: {"format": schema}),
        (
            _anthropic,
            "output_config.format.schema",
            lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        ),
        (
            _responses,
            "text.format.schema",
            lambda schema: {"text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}},
        ),
    ],
)
def test_a_schema_is_one_that_can_be_enforced(
    read: Callable[..., Ask], field: str, fields: Callable[[Any], dict[str, Any]]
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert read(**fields(schema)).schema == schema
    with pytest.raises(UsageError) as caught:
        read(**fields({"if": {}}))
    assert str(caught.value).startswith(field)
