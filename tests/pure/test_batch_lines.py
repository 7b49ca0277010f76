"""One line of a batch: what it asks for, and every refusal by the name of its field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.batch.lines import LINE_LIMIT_BYTES, Line, LineError, answer_line, failure_line, parse_line
from memfit.engines.requests import Completion, Sampling, Speed
from memfit.errors import EngineError

_HELLO = [{"role": "user", "content": "Hello"}]
_SPEED = Speed(prompt_tokens=5, prompt_seconds=1.0, generated_tokens=2, generation_seconds=1.0)


def _line(value: Any, *, number: int = 7, defaults: Sampling | None = None, **options: Any) -> Line:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_line(number, data, defaults or Sampling(), **options)


def _batch(url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": "one", "method": "POST", "url": url, "body": body}


def _chat(**body: Any) -> dict[str, Any]:
    return _batch(**{"messages": _HELLO, **body})


def _refused(value: Any, **options: Any) -> str:
    with pytest.raises(LineError) as caught:
        _line(value, **options)
    assert caught.value.number == 7
    return str(caught.value)


# --- what is understood ---


def test_the_example_of_openais_guide() -> None:
    line = _line(
        b'{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
        b'"gpt-3.5-turbo-0125", "messages": [{"role": "system", "content": "You are a helpful assistant."},'
        b'{"role": "user", "content": "Hello world!"}],"max_tokens": 1000}}'
    )
    assert (line.number, line.custom_id, line.form) == (7, "request-1", "chat")
    assert line.request.number == 7
    assert line.request.prompt is None
    assert line.request.messages == (
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello world!"},
    )
    assert line.request.sampling == Sampling(max_tokens=1000)
    assert line.request.schema is None


def test_a_completion_is_a_raw_prompt() -> None:
    for prompt in ("Once", ["Once"]):
        line = _line(_batch("/v1/completions", prompt=prompt, echo=False, best_of=1, suffix=None))
        assert (line.form, line.request.prompt, line.request.messages) == ("completion", "Once", ())


def test_plain_lines() -> None:
    line = _line({"prompt": "Why?", "id": 12, "temperature": 0})
    assert (line.form, line.custom_id) == ("chat", "12")
    assert line.request.messages == ({"role": "user", "content": "Why?"},)
    assert line.request.sampling == Sampling(temperature=0)
    assert _line({"prompt": "Why?"}, raw=True).request.prompt == "Why?"
    assert _line({"messages": _HELLO}, raw=True).request.messages == tuple(_HELLO)
    assert _line({"prompt": "Why?"}).custom_id == "line-7"
    assert _line({"prompt": "Why?", "id": 3, "custom_id": "named"}).custom_id == "named"


def test_every_sampling_field_wins_over_the_options() -> None:
    defaults = Sampling(
        max_tokens=1, temperature=1.5, top_k=1, top_p=0.1, min_p=0.1, repeat_penalty=1.1, seed=1, stop=("a",)
    )
    given = {
        "max_tokens": 9,
        "temperature": 0.25,
        "top_k": 5,
        "top_p": 1,
        "min_p": 0,
        "repeat_penalty": 1.5,
        "seed": 42,
        "stop": ["x", "y", "z", "u", "v"],
    }
    wanted = Sampling(**{**given, "stop": tuple("xyzuv")})
    assert _line(_chat(**given), defaults=defaults).request.sampling == wanted
    assert _line(_chat(**dict.fromkeys(given)), defaults=defaults).request.sampling == defaults
    assert _line(_chat(stop="end")).request.sampling.stop == ("end",)
    assert _line(_chat(max_completion_tokens=3)).request.sampling.max_tokens == 3


def test_roles_and_parts() -> None:
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "Ada"},
        {"role": "assistant", "content": "", "refusal": None, "tool_calls": [], "annotations": []},
    ]
    assert _line(_chat(messages=messages)).request.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One\ntwo"},
        {"role": "assistant", "content": ""},
    )


def test_what_means_nothing_here_is_taken() -> None:
    line = _line(
        _chat(
            model="gpt-4o",
            user="u",
            metadata={"a": "b"},
            store=True,
            service_tier="flex",
            parallel_tool_calls=True,
            safety_identifier="s",
            prompt_cache_key="k",
            stream=False,
            n=1,
            logprobs=False,
            frequency_penalty=0,
            presence_penalty=0.0,
            logit_bias={},
            tools=[],
            tool_choice="none",
            stream_options=None,
            top_logprobs=None,
        )
    )
    assert line.request.sampling == Sampling()


def test_response_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    assert _line(_chat(response_format=named)).request.schema == schema
    assert _line(_chat(response_format={"type": "json_object"})).request.schema == {"type": "object"}
    dumped = {"type": "json_object", "json_schema": None}  # as clients write a model's fields
    assert _line(_chat(response_format=dumped)).request.schema == {"type": "object"}
    part = {"type": "text", "text": "p", "cache_control": None}
    [message] = _line(_chat(messages=[{"role": "user", "content": [part]}])).request.messages
    assert message["content"] == "p"
    ours = {"type": "array"}
    assert _line(_chat(), schema=ours).request.schema == ours
    assert _line(_chat(response_format=None), schema=ours).request.schema == ours
    assert _line(_chat(response_format={"type": "text"}), schema=ours).request.schema is None
    assert _line({"prompt": "p", "response_format": named}, schema=ours).request.schema == schema


# --- what is refused ---


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"tools": [{}]}, "body.tools: a list is not supported, only [] or null; leave it out"),
        ({"n": 2}, "body.n: 2 is not supported, only 1 or null; leave it out"),
        ({"n": True}, "body.n: true is not supported, only 1 or null; leave it out"),
        ({"stream": True}, "body.stream: true is not supported, only false or null; leave it out"),
        ({"logprobs": 0}, "body.logprobs: 0 is not supported, only false or null; leave it out"),
        (
            {"audio": {}},
            "body.audio: an object is not supported, only null; leave it out",
        ),
        ({"temprature": 1}, "body.temprature is not a field that memfit knows"),
        ({"a\nb": 1}, 'body."a\\nb" is not a field that memfit knows'),
        ({"temperature": "1"}, 'body.temperature: got "1", needed a number'),
        ({"temperature": True}, "body.temperature: got true, needed a number"),
        ({"temperature": 101}, "body.temperature is 101.0; it must be between 0 and 100"),
        ({"top_p": 0}, "body.top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_k": 1.5}, "body.top_k: got 1.5, needed a whole number"),
        ({"top_k": -1}, "body.top_k is -1; it must be 0 or above, in 31 bits"),
        ({"repeat_penalty": 0}, "body.repeat_penalty is 0.0; it must be above 0"),
        ({"seed": -1}, "body.seed is -1; it must be between 0 and 4294967295"),
        ({"seed": True}, "body.seed: got true, needed a whole number"),
        ({"max_tokens": 0}, "body.max_tokens is 0; it must be above 0"),
        (
            {"max_tokens": 10**40},
            "body.max_tokens: got a number of more than 30 digits, needed a whole number",
        ),
        ({"max_completion_tokens": 0}, "body.max_completion_tokens is 0; it must be above 0"),
        (
            {"max_completion_tokens": 1, "max_tokens": 1},
            "body.max_tokens and max_completion_tokens are the same; give one of them",
        ),
        ({"stop": ""}, 'body.stop: got "", needed a text that is not empty, or a list of such texts'),
        ({"stop": [1]}, "body.stop: got a list, needed a text that is not empty, or a list of such texts"),
        ({"prompt": "x"}, "body.prompt is not for this url, which takes messages"),
        ({"messages": []}, "body.messages: got an empty list, needed a list of messages"),
        ({"messages": None}, "body.messages: got null, needed a list of messages"),
        ({"messages": ["x"]}, 'body.messages[0]: got "x", needed an object with a role and a content'),
        (
            {"messages": [{"role": "user", "content": ""}]},
            "body.messages: there is no text in them",
        ),
        (
            {"messages": [*_HELLO, {"role": "tool", "content": "x"}]},
            'body.messages[1].role: got "tool", needed one of system, developer, user, assistant',
        ),
        (
            {"messages": [{"role": "user"}]},
            "body.messages[0].content: got null, needed a text, or a list of parts of type text",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
            "body.messages[0].tool_call_id is not a field that memfit knows",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            'body.messages[0].content[0]: parts of type "image_url" are not supported; only text is',
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "body.messages[0].content[0].text: got 1, needed a text",
        ),
        ({"response_format": "json"}, 'body.response_format: got "json", needed an object'),
        (
            {"response_format": {"type": "xml"}},
            'body.response_format.type: got "xml", needed text, json_object or json_schema',
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"items": {"uniqueItems": True}}},
                }
            },
            "body.response_format.json_schema.schema at #/items/uniqueItems: that items differ is not "
            "enforced; leave it out and check the answer",
        ),
        (
            {"response_format": {"type": "json_object", "scheme": {}}},
            "body.response_format.scheme is not a field that memfit knows",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "body.response_format.json_schema.schema: got null, needed an object",
        ),
    ],
)
def test_a_body_that_is_refused(body: dict[str, Any], message: str) -> None:
    assert _refused(_chat(**body)) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "the line is a list, not an object"),
        (
            b"{",
            "cannot read the line: Expecting property name enclosed in double quotes at column 2 (char 1)",
        ),
        (b'{"prompt": "\xff"}', "cannot read the line: byte 12 is not UTF-8"),
        (b'{"prompt": "a", "prompt": "b"}', "cannot read the line: 'prompt' is there twice in one object"),
        (b'{"prompt": "a", "top_p": NaN}', "cannot read the line: NaN is not a number that JSON has"),
        (
            b'{"prompt": "a", "top_p": 1e999}',
            "top_p: got a number beyond all bounds, needed a number",
        ),
        (b"[" * 100_000, "cannot read the line: it is nested too deeply"),
        (b'{"prompt": "\\ud83d"}', "the line holds half of a character: \\ud83d alone"),
        (b"1" * (LINE_LIMIT_BYTES + 1), "the line is longer than 16.00 MiB"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": 3}, "prompt: got 3, needed a text"),
        ({}, "the line has neither a prompt nor messages; give one of them"),
        ({"prompt": None}, "the line has neither a prompt nor messages; give one of them"),
        (
            {"prompt": "a", "messages": _HELLO},
            "the line has both a prompt and messages; give one of them",
        ),
        ({"prompt": "a", "label": 1}, "label is not a field that memfit knows"),
        ({"prompt": "a", "custom_id": True}, "custom_id: got true, needed a text or a whole number"),
        ({"prompt": "a", "id": ""}, 'id: got "", needed a text or a whole number'),
        ({**_chat(), "method": "GET"}, 'method: got "GET", needed "POST"'),
        (
            {**_chat(), "url": "/v1/embeddings"},
            'url: got "/v1/embeddings", needed /v1/chat/completions or /v1/completions',
        ),
        ({"url": "/v1/completions"}, "body: got null, needed an object"),
        (
            {"body": {"messages": _HELLO}},
            "url: got null, needed /v1/chat/completions or /v1/completions",
        ),
        (
            {**_chat(), "prompt": "a"},
            "prompt is not a field of a batch's line; those are custom_id, method, url and body",
        ),
        (
            _batch("/v1/completions", prompt=["a", "b"]),
            "body.prompt: got 2 prompts; give each a line of its own",
        ),
        (_batch("/v1/completions", prompt=[1, 2]), "body.prompt: got a list, needed a text"),
        (
            _batch("/v1/completions", messages=_HELLO),
            "body.messages is not for this url, which takes prompt",
        ),
    ],
)
def test_a_line_that_is_refused(line: Any, message: str) -> None:
    assert _refused(line) == message


def test_a_refusal_knows_whose_it_is() -> None:
    with pytest.raises(LineError) as caught:
        _line(_chat(n=2))
    assert (caught.value.number, caught.value.custom_id, caught.value.exit_code) == (7, "one", 2)
    with pytest.raises(LineError) as caught:
        _line(b"{")
    assert caught.value.custom_id is None


def test_a_whole_character_may_be_escaped() -> None:
    line = _line(b'{"prompt": "\\ud83d\\ude00"}')
    assert line.request.messages == ({"role": "user", "content": "\N{GRINNING FACE}"},)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(1, 10**6))
def test_any_text_comes_through(text: str, max_tokens: int) -> None:
    line = _line({"prompt": text, "max_tokens": max_tokens, "custom_id": text}, raw=True)
    assert (line.custom_id, line.request.prompt, line.request.sampling.max_tokens) == (text, text, max_tokens)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON)
def test_any_json_is_a_line_or_a_line_error(value: Any) -> None:
    for line in (value, {"prompt": value}, {"prompt": "a", "stop": value, "response_format": value}):
        try:
            assert isinstance(_line(line), Line)
        except LineError as error:
            assert str(error)


# --- answers ---


def _answer(value: Any, **changes: Any) -> dict[str, Any]:
    facts = {"text": "Hi", "finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": 2}
    return answer_line(_line(value), Completion(**{**facts, **changes}, speed=_SPEED), model="demo")


def test_a_chats_answer() -> None:
    answer = _answer(_chat())
    body = answer["response"]["body"]
    assert answer.pop("id").startswith("batch_req_")
    assert answer["response"].pop("request_id")
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 1.7e9
    assert answer == {
        "custom_id": "one",
        "response": {
            "status_code": 200,
            "body": {
                "object": "chat.completion",
                "model": "demo",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "Hi", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
            },
        },
        "error": None,
    }


def test_a_completions_answer() -> None:
    body = _answer(_batch("/v1/completions", prompt="x"), finish_reason="length")["response"]["body"]
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "Hi", "logprobs": None, "finish_reason": "length"}]


def test_failures() -> None:
    assert failure_line(3, "a", LineError(3, "a", "no")) == {
        "line": 3,
        "custom_id": "a",
        "error": {"message": "no", "type": "invalid_request_error"},
    }
    assert failure_line(3, None, EngineError("died"))["error"] == {"message": "died", "type": "server_error"}
