"""Ollama's API: what bodies ask for, answers as lines and whole, and what is said of models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf
from typing import Any

import pytest
from answer_parts import PARTS, answer_of, data_of, streamed

from memfit.engines.chat_format import CallArguments, CallBegins, Part, ReasoningPart, TextPart
from memfit.engines.requests import RANDOM_SEED, ChosenToken, Progress, Sampling
from memfit.errors import EngineError, UsageError
from memfit.openai.answers import Frame
from memfit.openai.ask import Ask
from memfit.openai.model_facts import ModelFacts
from memfit.openai.ollama import (
    OllamaEmbed,
    OllamaForm,
    loads_only,
    read_keep_alive,
    read_ollama_chat,
    read_ollama_embed,
    read_ollama_embeddings,
    read_ollama_generate,
    read_ollama_name,
    read_stream,
)
from memfit.openai.ollama_answers import OllamaWriter, ollama_error, ollama_loaded, ollama_time
from memfit.openai.ollama_models import (
    ollama_embed_body,
    ollama_embeddings_body,
    ollama_ps,
    ollama_show,
    ollama_tags,
    ollama_version,
    pull_progress,
    pull_status,
)

_HELLO = [{"role": "user", "content": "Hello"}]
_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")


def _chat(**fields: Any) -> Ask:
    return read_ollama_chat({"messages": _HELLO, **fields}, defaults=Sampling())


def _generate(**fields: Any) -> Ask:
    return read_ollama_generate({"prompt": "Hello", **fields}, defaults=Sampling())


def test_options_become_sampling() -> None:
    options = {
        "num_predict": 9,
        "temperature": 0,
        "top_k": 7.0,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.7,
        "repeat_last_n": -1,
        "repeat_penalty": 1.2,
        "presence_penalty": 1.5,
        "frequency_penalty": 1,
        "mirostat": 1,
        "seed": 42,
        "stop": ["\n", "user:"],
        # Of loading, and of versions long gone.
        "num_ctx": 8192,
        "num_gpu": 1,
        "numa": False,
        "tfs_z": 0.5,
        "penalize_newline": True,
    }
    sampling = Sampling(
        max_tokens=9,
        temperature=0,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.7,
        repeat_last_n=-1,
        repeat_penalty=1.2,
        presence_penalty=1.5,
        frequency_penalty=1,
        mirostat=1,
        seed=42,
        stop=("\n", "user:"),
    )
    for ask in (_chat(options=options), _generate(options=options)):
        assert ask.sampling == sampling
    assert _chat(options={"num_predict": -1, "seed": -1}).sampling == Sampling(seed=RANDOM_SEED)
    assert _chat(options={"num_predict": -2}, keep_alive="5m", unknown=1) == _chat()


def test_a_stream_is_the_rule() -> None:
    assert _chat().stream and _generate().stream
    assert not _chat(stream=False).stream
    assert read_stream({}) and not read_stream({"stream": False})


def test_messages_keep_calls_and_their_results_together() -> None:
    ask = _chat(
        messages=[
            {"role": "SYSTEM", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "thinking": "I look.",
                "tool_calls": [
                    {"function": {"name": "weather", "arguments": {"city": "Köln"}}},
                    {"function": {"name": "time", "arguments": {}}},
                    {"id": "own", "function": {"name": "time", "arguments": '{"zone": 1}'}},
                ],
            },
            {"role": "tool", "content": "12:00", "tool_name": "time"},
            {"role": "tool", "content": "Sun"},
            {"role": "tool", "content": "13:00", "tool_name": "time", "tool_call_id": "own"},
            {"role": "user", "content": "Thanks"},
            {"role": "assistant", "content": "You are"},
        ]
    )

    def call(name: str, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}

    calls = [
        call("call_1", "weather", {"city": "Köln"}),
        call("call_2", "time", {}),
        call("own", "time", {"zone": 1}),
    ]
    assert ask.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": calls},
        {"role": "tool", "content": "12:00", "tool_call_id": "call_2", "name": "time"},
        {"role": "tool", "content": "Sun", "tool_call_id": "call_1", "name": "weather"},
        {"role": "tool", "content": "13:00", "tool_call_id": "own", "name": "time"},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "You are"},
    )
    assert ask.template.continues and ask.truncates
    assert not _chat(truncate=False).truncates


def test_tools_are_openai_s() -> None:
    function = {"name": "weather", "parameters": {"type": "object"}}
    assert _chat(tools=[_TOOL]).template.tools == ({"type": "function", "function": function},)
    assert _chat(tools=[{"function": {"name": "f"}}]).template.tools[0]["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("think", "values"),
    [
        (None, {}),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
        ("max", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_the_template_is_told(think: Any, values: dict[str, Any]) -> None:
    assert _chat(think=think).template.values == values
    assert _generate(think=think).template.values == values


@pytest.mark.parametrize(
    ("given", "schema"),
    [(None, None), ("", None), ("json", {"type": "object"}), ({"type": "integer"}, {"type": "integer"})],
)
def test_a_format_becomes_a_schema(given: Any, schema: Any) -> None:
    assert _chat(format=given).schema == schema


def test_a_prompt_is_a_message_unless_it_is_raw_or_has_a_suffix() -> None:
    assert _generate(system="Be brief.").messages == ({"role": "system", "content": "Be brief."}, *_HELLO)
    assert _generate(template="", context=[], suffix="").messages == tuple(_HELLO)
    raw = _generate(raw=True)
    assert (raw.prompts, raw.messages) == (("Hello",), ())
    filled = _generate(suffix="world")
    assert (filled.prompts, filled.suffix) == (("Hello",), "world")


def test_logprobs() -> None:
    assert _chat(top_logprobs=3).logprobs is None
    assert _chat(logprobs=True).logprobs == 0
    assert _chat(logprobs=True, top_logprobs=3).logprobs == 3


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": "Hello"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": 5}}]}
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"options": {"temperature": "1"}}, "options.temperature"),
        ({"options": {"top_k": 1.5}}, "options.top_k"),
        ({"options": {"top_p": 2}}, "options.top_p"),
        ({"options": []}, "options"),
        ({"format": "xml"}, "format"),
        ({"format": {"if": {}}}, "format"),
        ({"think": "hard"}, "think"),
        ({"stream": "no"}, "stream"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"keep_alive": "soon"}, "keep_alive"),
    ],
)
def test_what_is_wrong_in_a_chat_is_refused_by_its_path(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        _chat(**fields)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": 5}, "prompt"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"raw": True, "system": "a"}, "system"),
    ],
)
def test_what_is_wrong_in_a_prompt_is_refused_by_its_path(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        _generate(**fields)
    assert caught.value.field == field


def test_images_are_no_fault_of_the_request() -> None:
    with pytest.raises(EngineError, match=r"^messages\[0\]\.images: image input is not supported"):
        _chat(messages=[{"role": "user", "content": "What?", "images": ["AAAA"]}])
    with pytest.raises(EngineError, match=r"^images: image input is not supported"):
        _generate(images=["AAAA"])
    assert _generate(images=[]) == _generate()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        *((300, 300), (0, 0), (-1, inf), ("0", 0), ("-1", inf), ("5m", 300), ("1h30m", 5400), ("-1m", inf)),
        *(("1.5s", 1.5), ("0s", 0), ("100ms", 0.1)),
    ],
)
def test_how_long_a_model_stays(given: Any, seconds: float | None) -> None:
    assert read_keep_alive({"keep_alive": given}) == seconds


@pytest.mark.parametrize("given", ["", "m", "5 m", "5m!", "-", True, [], "9" * 30, "1h" * 60])
def test_no_duration(given: Any) -> None:
    with pytest.raises(UsageError, match=r"^keep_alive"):
        read_keep_alive({"keep_alive": given})


@pytest.mark.parametrize(("form", "field"), [("chat", "messages"), ("generate", "prompt")])
def test_a_body_that_asks_nothing_loads(form: OllamaForm, field: str) -> None:
    assert loads_only({field: "" if form == "generate" else []}, form) == "load"
    assert loads_only({"keep_alive": 0}, form) == "unload"
    assert loads_only({field: "Hello", "keep_alive": 0}, form) is None
    body = ollama_loaded(form, "unload", model="demo")
    assert _TIME.fullmatch(body.pop("created_at"))
    said = {"message": {"role": "assistant", "content": ""}} if form == "chat" else {"response": ""}
    assert body == {"model": "demo", "done": True, "done_reason": "unload", **said}


def test_texts_to_embed() -> None:
    assert read_ollama_embed({"model": "m", "input": "a"}) == OllamaEmbed(texts=("a",), model="m")
    read = read_ollama_embed({"input": ["a", "b"], "truncate": False, "dimensions": 64})
    assert read == OllamaEmbed(texts=("a", "b"), truncate=False, dimensions=64)
    assert read_ollama_embed({"input": "", "dimensions": 0}) == OllamaEmbed(texts=())
    assert read_ollama_embeddings({"prompt": "a"}) == OllamaEmbed(texts=("a",))
    assert read_ollama_embeddings({}) == OllamaEmbed(texts=())
    for body in ({"input": 5}, {"input": ["a", 5]}, {"input": "a", "dimensions": -1}):
        with pytest.raises(UsageError):
            read_ollama_embed(body)
    assert ollama_embed_body([(0.5, 1)], model="m", tokens=3, seconds=0.25) == {
        "model": "m",
        "embeddings": [[0.5, 1]],
        "total_duration": 250_000_000,
        "load_duration": 0,
        "prompt_eval_count": 3,
    }
    assert ollama_embeddings_body((0.5, 1)) == {"embedding": [0.5, 1]}


def test_a_model_is_called_by_its_name() -> None:
    assert read_ollama_name({"model": "hf.co/org/repo:Q4_K_M"}) == "hf.co/org/repo:Q4_K_M"
    assert read_ollama_name({"name": "old"}) == "old"
    with pytest.raises(UsageError, match=r"^model: got null"):
        read_ollama_name({})


def _writer(form: OllamaForm, **fields: Any) -> OllamaWriter:
    ask = _chat(**fields) if form == "chat" else _generate(**fields)
    return OllamaWriter(form, ask, model="demo")


def _whole(frames: Sequence[Frame]) -> dict[str, Any]:
    """What a client makes of a stream."""
    texts = {"content": "", "response": "", "thinking": ""}
    calls: list[Any] = []
    for index, frame in enumerate(frames):
        data = data_of(frame)
        assert (frame.event, data["model"], data["done"]) == (None, "demo", index == len(frames) - 1)
        said = data.get("message", data)
        for name in texts:
            texts[name] += said.get(name, "")
        calls += said.get("tool_calls", [])
    last = data_of(frames[-1])
    said = last.get("message", last)
    said |= {name: texts[name] for name in ("content", "response") if name in said}
    if texts["thinking"]:
        said["thinking"] = texts["thinking"]
    if calls:
        said["tool_calls"] = calls
    return last


@pytest.mark.parametrize("form", ["chat", "generate"])
@pytest.mark.parametrize("parts", [PARTS, PARTS[:2], PARTS[2:4], PARTS[4:], ()])
def test_a_stream_and_a_body_say_the_same(form: OllamaForm, parts: Sequence[Part]) -> None:
    answer = answer_of(parts, "tool_calls")
    writer = _writer(form)
    whole, body = _whole(streamed(writer, parts, answer)), writer.body([answer])
    for one in (whole, body):
        assert _TIME.fullmatch(one.pop("created_at"))
        assert one.pop("total_duration") > 0
    assert whole == body


def test_a_body_is_whole() -> None:
    body = _writer("chat").body([answer_of(PARTS, "tool_calls")])
    del body["created_at"], body["total_duration"]
    assert body == {
        "model": "demo",
        "message": {
            "role": "assistant",
            "content": "I look it up.",
            "thinking": "The user asks. ",
            "tool_calls": [
                {
                    "id": "call_1",
                    "function": {"index": 0, "name": "weather", "arguments": {"city": {"name": "Köln"}}},
                },
                {"id": "call_2", "function": {"index": 1, "name": "time", "arguments": {}}},
            ],
        },
        "done": True,
        "done_reason": "stop",
        "load_duration": 0,
        "prompt_eval_count": 20,
        "prompt_eval_duration": 500_000_000,
        "eval_count": 9,
        "eval_duration": 2_000_000_000,
    }
    assert _writer("generate").body([answer_of(PARTS[2:4], "length")])["done_reason"] == "length"


def test_a_call_comes_whole_before_what_follows() -> None:
    parts = (CallBegins(0, None, "f"), CallArguments(0, '{"a"'), CallArguments(0, ": 1}"), TextPart("b"))
    answer = answer_of(parts, "tool_calls")
    frames = streamed(_writer("chat"), parts, answer)
    said = [data_of(frame)["message"] for frame in frames]
    assert said == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": ""},
    ]


def test_tokens_come_with_their_text() -> None:
    token = ChosenToken(token=1, piece=b"a", logprob=-0.25, top=((1, b"a", -0.25),))
    entry = {
        "token": "a",
        "logprob": -0.25,
        "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -0.25, "bytes": [97]}],
    }
    writer = _writer("chat", logprobs=True, top_logprobs=1)
    parts = (ReasoningPart("a"), TextPart("a"))
    answer = answer_of(parts, tokens=(token, token))
    frames = streamed(writer, parts, answer, [token, token])
    assert [data_of(frame).get("logprobs") for frame in frames] == [[entry], [entry], None]
    assert writer.body([answer])["logprobs"] == [entry, entry]
    assert "logprobs" not in _writer("chat").body([answer])


def test_a_stream_that_fails_ends_in_an_error() -> None:
    writer = _writer("chat")
    assert list(writer.progress(0, Progress(number=0, total=2, shared=0, processed=1, seconds=1))) == []
    (frame,) = writer.fail(EngineError("the worker died"))
    assert frame == Frame(data={"error": "the worker died"})
    assert ollama_error(UsageError("model 'x' not found")) == {"error": "model 'x' not found"}


def test_a_time() -> None:
    assert ollama_time(1_700_000_000_000_000_007) == "2023-11-14T22:13:20.000000007Z"


def test_what_is_said_of_models() -> None:
    model = ModelFacts(
        name="demo",
        size_bytes=144_811_104,
        digest="0a8c26",
        modified=1_700_000_000,
        family="llama",
        parameters=134_515_008,
        quantization="Q8_0",
        context=2048,
        capabilities=("completion", "tools"),
        template="{{ messages }}",
        license="Apache-2.0",
        header=(("general.name", "SmolLM2"), ("llama.context_length", 8192)),
        loaded_bytes=200,
        vram_bytes=100,
    )
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "135M",
        "quantization_level": "Q8_0",
    }
    shared = {"name": "demo", "model": "demo", "digest": "0a8c26", "details": details}
    modified = "2023-11-14T22:13:20.000000000Z"
    assert ollama_tags([model]) == {
        "models": [
            {**shared, "modified_at": modified, "size": 144_811_104, "capabilities": ["completion", "tools"]}
        ]
    }
    assert ollama_ps([model]) == {
        "models": [
            {
                **shared,
                "size": 200,
                "size_vram": 100,
                "expires_at": "2300-01-01T00:00:00Z",
                "context_length": 2048,
            }
        ]
    }
    shown = ollama_show(model)
    assert "FROM demo\n" in shown.pop("modelfile")
    assert shown.pop("parameters").split() == ["num_ctx", "2048"]
    assert shown == {
        "template": "{{ messages }}",
        "license": "Apache-2.0",
        "details": details,
        "model_info": {
            "general.name": "SmolLM2",
            "general.architecture": "llama",
            "general.parameter_count": 134_515_008,
            "llama.context_length": 2048,
        },
        "capabilities": ["completion", "tools"],
        "modified_at": modified,
    }
    assert ollama_version("0.13.0") == {"version": "0.13.0"}


@pytest.mark.parametrize(
    ("parameters", "size"),
    [(8_030_261_248, "8.0B"), (134_515_008, "135M"), (1_500_000, "1.5M"), (268_000, "268K"), (12, "12")],
)
def test_a_model_s_size(parameters: int, size: str) -> None:
    facts = ModelFacts(
        name="m",
        size_bytes=1,
        digest="",
        modified=0,
        family="f",
        parameters=parameters,
        quantization="F16",
        context=1,
    )
    assert facts.parameter_size == size


def test_a_download_tells_how_far_it_is() -> None:
    assert pull_status("success") == Frame(data={"status": "success"})
    assert pull_progress("sha256:0123456789abcdef", 10, 4) == Frame(
        data={
            "status": "pulling 0123456789ab",
            "digest": "sha256:0123456789abcdef",
            "total": 10,
            "completed": 4,
        }
    )
