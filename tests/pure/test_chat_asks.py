"""Bodies of chats and completions as a server takes them, and of llama-server's own paths, as asks."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from memfit.engines.requests import RANDOM_SEED, Sampling
from memfit.errors import EngineError, MemfitError, UsageError
from memfit.openai.ask import AUTO, NONE, REQUIRED, Ask
from memfit.openai.chat import read_chat, read_completion
from memfit.openai.llama_asks import read_infill, read_llama_completion, response_fields

_USER = {"role": "user", "content": "Hello"}
_DEFAULTS = Sampling(temperature=0.5, max_tokens=77, seed=3)


def _tool(name: str = "weather", **values: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **values}}


def _chat(**body: Any) -> Ask:
    return read_chat({"messages": [_USER], **body}, defaults=_DEFAULTS)


def _text(**body: Any) -> Ask:
    return read_completion({"prompt": "a", **body}, defaults=_DEFAULTS)


def _llama(**body: Any) -> Ask:
    return read_llama_completion({"prompt": "a", **body}, defaults=_DEFAULTS)


def test_what_is_not_said_is_as_the_server_has_it() -> None:
    ask = _chat()
    assert ask.sampling == _DEFAULTS and ask.messages == (_USER,) and ask.n == ask.choices == 1
    assert not (ask.stream or ask.logprobs or ask.tools or ask.truncates or ask.usage_in_stream)
    assert ask.generates and ask.parses_reasoning and ask.parallel_calls and ask.tool_choice == AUTO
    assert ask.template.adds_generation_prompt and not ask.template.continues
    nulls = ("max_tokens", "temperature", "stop", "seed", "n", "stream", "tools", "tool_choice", "logprobs")
    more = ("response_format", "logit_bias", "top_logprobs", "stream_options", "audio", "grammar", "user")
    assert _chat(**dict.fromkeys((*nulls, *more))) == ask, "null is as left out"
    assert _chat(user="me", metadata={"a": "b"}, store=False, unknown=[1]) == ask


def test_every_name_of_the_limit_and_its_words() -> None:
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        assert _chat(**{name: 5}).sampling.max_tokens == 5
        assert _chat(**{name: -1}).sampling.max_tokens == 77 and _chat(**{name: -1}).generates
        assert not _chat(**{name: 0}).generates
        with pytest.raises(UsageError, match=f"^{name} is -3; it must be above 0"):
            _chat(**{name: -3})
    assert _chat(max_tokens=7, max_completion_tokens=5, n_predict=-1).sampling.max_tokens == 5
    assert _chat(max_tokens=2**62).sampling.max_tokens == 2**62
    for wrong in (True, 1.5, "5", [5], 2**63):
        with pytest.raises(UsageError, match="max_tokens"):
            _chat(max_tokens=wrong)


def test_sampling_in_every_servers_words() -> None:
    ask = _chat(
        temperature=0, top_p=0.5, top_k=7, min_p=0, typical_p=0.9, repetition_penalty=1.5, repeat_last_n=-1,
        frequency_penalty=-2, presence_penalty=2, mirostat=2, seed=-1, stop="END", ignore_eos=True,
        xtc_probability=0.1, dry_multiplier=1, dry_sequence_breakers=["\n"],
    )  # fmt: skip
    found = ask.sampling
    assert (found.temperature, found.top_p, found.top_k, found.min_p, found.typical_p) == (0, 0.5, 7, 0, 0.9)
    assert (found.repeat_penalty, found.repeat_last_n, found.frequency_penalty) == (1.5, -1, -2)
    assert (found.mirostat, found.stop, found.ignore_eos) == (2, ("END",), True)
    assert found.seed == RANDOM_SEED and found.dry_sequence_breakers == ("\n",)
    assert _chat(seed=2**40 + 5).sampling.seed == 5
    assert _chat(stop=["a", "b"]).sampling.stop == ("a", "b")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(("temperature", each) for each in (-1, 1e308, "1", True, [1], 10**400)),
        *(("top_p", each) for each in (0, 1.1, "x")),
        *(("top_k", each) for each in (-1, 2**31, 1.0)),
        *(("seed", each) for each in (2**63, "1", 1.5, False)),
        *(("stop", each) for each in (5, [5], ["a"] * 257, "x" * 4097, {"a": 1})),
        *(("repetition_penalty", each) for each in (0, -1)),
        *(("n", each) for each in (0, -1, 129, "1", True, 1.0)),
        *(("stream", each) for each in ("true", 1)),
        *(("stream_options", each) for each in ([], "x", True)),
        *(("logit_bias", each) for each in ("x", 5, [5], [[1]], [[1, 2, 3]], {"1": "x"}, {"1": 1e400})),
        ("logit_bias", [[1.5, 1]]),
        *(("model", each) for each in (5, [], {})),
        *(("grammar", each) for each in (5, {})),
        *(("json_schema", each) for each in (5, "x", [])),
        *(("response_format", each) for each in ("json", {"type": "x"}, {"type": "json_schema"}, [])),
        *(("logprobs", each) for each in (5, "true")),
        *(("tools", each) for each in ({}, "x", [None], [5], [{}], [{"type": "web_search"}])),
        *(("tool_choice", each) for each in (5, "x", [], {}, {"type": "x"}, REQUIRED)),
        *(("parallel_tool_calls", each) for each in (1, "x")),
        *(("chat_template_kwargs", each) for each in ([], "{}", 5, {"enable_thinking": "yes"})),
        *(("reasoning_effort", each) for each in ("very", 5)),
        ("modalities", ["text", "audio"]),
        *(("add_generation_prompt", 1), ("continue_final_message", "x"), ("echo", None)),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_field(field: str, wrong: Any) -> None:
    if field == "echo":  # not a chat's
        assert _chat(echo=wrong) == _chat()
        return
    with pytest.raises(UsageError) as raised:
        _chat(**{field: wrong})
    assert raised.value.field and raised.value.field.startswith(field)
    assert str(raised.value).startswith(field) and len(str(raised.value)) < 500


def test_logit_bias_in_both_forms() -> None:
    assert _chat(logit_bias={"5": -100, "word": 1}).sampling.logit_bias == ((5, -100.0), ("word", 1.0))
    assert _chat(logit_bias=[[5, 1.5], ["word", False]]).sampling.logit_bias == ((5, 1.5), ("word", -inf))
    # What is no token's number is a text.
    odd = ("-5", "1e3", "0x1", "12345678901", "")
    assert [token for token, _ in _chat(logit_bias=dict.fromkeys(odd, 1)).sampling.logit_bias] == list(odd)
    assert len(_chat(logit_bias={str(each): 1 for each in range(65_000)}).sampling.logit_bias) == 65_000
    with pytest.raises(UsageError, match="logit_bias"):
        _chat(logit_bias={str(each): 1 for each in range(65_537)})


def test_lists_that_would_hold_all_others_up_are_refused() -> None:
    with pytest.raises(UsageError, match="dry_sequence_breakers has 17 texts; at most 16"):
        _chat(dry_sequence_breakers=["x" * 4000] * 17)
    with pytest.raises(UsageError, match="logit_bias has 1025 texts; at most 1024"):
        _chat(logit_bias={f"word{each}": 1 for each in range(1025)})
    with pytest.raises(UsageError, match="messages: at most 65536"):
        _chat(messages=[_USER] * 65_537)
    with pytest.raises(UsageError, match="at most 512 tools"):
        _chat(tools=[_tool(f"f{each}") for each in range(513)])


def test_streams_and_what_they_tell() -> None:
    ask = _chat(
        stream=True, stream_options={"include_usage": True}, return_progress=True, timings_per_token=True
    )
    assert ask.stream and ask.usage_in_stream and ask.tells_progress and ask.tells_timings
    assert not _chat(stream=True, stream_options={"include_usage": False}).usage_in_stream


def test_logprobs_of_a_chat() -> None:
    assert _chat(logprobs=True).logprobs == 0 and _chat(logprobs=True, top_logprobs=5).logprobs == 5
    assert _chat(logprobs=False).logprobs is None
    for wrong in ({"top_logprobs": 5}, {"logprobs": False, "top_logprobs": 0}):
        with pytest.raises(UsageError, match="top_logprobs needs logprobs"):
            _chat(**wrong)
    for wrong_top in (-1, 1001, "5", True):
        with pytest.raises(UsageError, match="top_logprobs"):
            _chat(logprobs=True, top_logprobs=wrong_top)


def test_answers_that_follow_something() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    described = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert _chat(response_format=described).schema == schema
    assert _chat(json_schema=schema).schema == schema
    assert _chat(response_format={"type": "json_object"}).schema == {"type": "object"}
    assert _chat(response_format={"type": "text"}).schema is None
    assert _chat(grammar='root ::= "a"').grammar == 'root ::= "a"' and _chat(grammar="").grammar is None
    with pytest.raises(UsageError, match="together"):
        _chat(grammar='root ::= "a"', json_schema=schema)
    with pytest.raises(UsageError, match="grammar and tools"):
        _chat(grammar='root ::= "a"', tools=[_tool()])
    assert _chat(grammar='root ::= "a"', tools=[_tool()], tool_choice=NONE).grammar


def test_tools_and_the_choice_among_them() -> None:
    tools = [
        _tool("weather", description="d", parameters={"type": "object"}),
        _tool("time", description=None),
    ]
    ask = _chat(tools=tools)
    assert [one["function"]["name"] for one in ask.tools] == ["weather", "time"]
    assert ask.tools[1]["function"] == {"name": "time", "parameters": {"type": "object"}}
    assert (
        _chat(tools=tools, tool_choice=NONE).tools == ()
        and _chat(tools=tools, tool_choice=NONE).template.tools
    )
    assert _chat(tools=tools, tool_choice=REQUIRED).tool_choice == REQUIRED
    forced = _chat(tools=tools, tool_choice={"type": "function", "function": {"name": "time"}})
    assert (forced.tool_choice, forced.function, len(forced.tools)) == (REQUIRED, "time", 2)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [_tool("time")]}}
    found = _chat(tools=tools, tool_choice=allowed)
    assert (found.tool_choice, found.function, len(found.tools)) == (REQUIRED, None, 1)
    assert not _chat(tools=tools, parallel_tool_calls=False).parallel_calls
    assert _chat(tool_choice=AUTO) == _chat(tool_choice=NONE) == _chat(tools=[], tool_choice=AUTO) == _chat()
    with pytest.raises(UsageError, match="needed one of the tools"):
        _chat(tools=tools, tool_choice={"type": "function", "function": {"name": "snow"}})
    with pytest.raises(UsageError, match='a function "time" already'):
        _chat(tools=[_tool("time"), _tool("time")])
    for name in ("", None, 5, "x" * 257):
        with pytest.raises(UsageError, match=r"tools\[0\].function.name"):
            _chat(tools=[_tool(name)])  # type: ignore[arg-type]


def test_functions_of_before_there_were_tools() -> None:
    ask = _chat(functions=[{"name": "time"}], function_call={"name": "time"})
    assert (ask.tool_choice, ask.function) == (REQUIRED, "time")
    assert _chat(functions=[{"name": "time"}], function_call="none").tool_choice == NONE
    assert _chat(functions=[{"name": "time"}]).tools[0]["function"]["name"] == "time"
    with pytest.raises(UsageError, match="functions"):
        _chat(functions={})


def test_a_templates_own_values_cannot_stand_for_the_request() -> None:
    values = {"messages": [], "tools": [1], "bos_token": "x", "add_generation_prompt": False}
    ask = _chat(chat_template_kwargs={**values, "enable_thinking": False})
    assert ask.messages == (_USER,) and ask.tools == () and ask.template.adds_generation_prompt
    assert ask.template.values["enable_thinking"] is False
    assert _chat(reasoning_effort="none").template.values == {"enable_thinking": False}
    assert _chat(reasoning_effort="low").template.values == {"reasoning_effort": "low"}


def test_an_assistants_last_words_are_continued() -> None:
    last = {"role": "assistant", "content": "Hi"}
    ask = _chat(messages=[_USER, last])
    assert ask.template.continues and not ask.template.adds_generation_prompt
    assert not _chat(messages=[_USER, last], continue_final_message=False).template.continues
    assert _chat(messages=[last]).template.continues
    assert _chat(messages=[_USER, last], continue_final_message=True).template.continues
    assert not _chat(add_generation_prompt=False).template.adds_generation_prompt
    wrong: tuple[dict[str, Any], ...] = (
        {"messages": [_USER, last, last]},
        {"continue_final_message": True},
        {"messages": [_USER, last], "continue_final_message": True, "add_generation_prompt": True},
        {"messages": [_USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
    )
    for body in wrong:
        with pytest.raises(UsageError):
            _chat(**body)


def test_messages_with_calls_results_and_thoughts() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    ask = _chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "rules"}]},
            {**_USER, "name": "Ada", "unknown": 1},
            {"role": "assistant", "tool_calls": [call], "reasoning_content": "hmm", "audio": None},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "assistant", "content": None, "refusal": "no"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]
    )
    system, user, assistant, tool, refused, last = ask.messages
    assert system == {"role": "system", "content": "rules"} and user["name"] == "Ada"
    assert assistant["content"] == "" and assistant["reasoning_content"] == "hmm"
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert tool == {"role": "tool", "content": "3", "tool_call_id": "c1"}
    assert refused["content"] == "no" and last["content"] == "a\nb"
    broken = {"id": "c1", "function": {"name": "f", "arguments": "{bad"}}
    kept = _chat(messages=[_USER, {"role": "assistant", "tool_calls": [broken]}, tool]).messages[1]
    assert kept["tool_calls"][0]["function"]["arguments"] == {"INVALID_JSON": "{bad"}


@pytest.mark.parametrize(
    "messages",
    [
        *(None, [], {}, "x", [None], [5], [{}], [{"role": "user"}], [{"role": "user", "content": None}]),
        *(
            [{"role": "robot", "content": "x"}],
            [{"role": 5, "content": "x"}],
            [{"role": "user", "content": 5}],
        ),
        [{"role": "user", "content": [5]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "audio"}]}],
        [_USER, {"role": "assistant", "tool_calls": [5]}],
        [_USER, {"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}],
        [_USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}],
        [_USER, {"role": "assistant", "tool_calls": "x"}],
    ],
)
def test_messages_that_are_none(messages: Any) -> None:
    with pytest.raises(UsageError, match=r"^messages"):
        _chat(messages=messages)


def test_empty_contents_are_contents() -> None:
    for content in ("", [], [{"type": "text", "text": ""}]):
        assert _chat(messages=[{"role": "user", "content": content}]).messages[0]["content"] == ""
    assert _chat(messages=[{"role": "tool", "content": "x"}]).messages[0]["role"] == "tool"


def test_images_are_refused_as_what_another_model_could_read() -> None:
    with pytest.raises((UsageError, EngineError), match="image input is not supported"):
        _chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_prompts_in_every_form() -> None:
    assert _text().prompts == ("a",) and _text(prompt=[1, 2]).prompts == ((1, 2),)
    assert _text(prompt=["a", "b"]).prompts == ("a", "b")
    assert _text(prompt=[[1, 2], [3]]).prompts == ((1, 2), (3,))
    assert _text(prompt=[1, "a", 2]).prompts == ((1, "a", 2),)
    assert _text(prompt=["a", [1, "b"]]).prompts == ("a", (1, "b"))
    assert _text(prompt={"prompt_string": "x"}).prompts == ("x",)
    assert _text(prompt=["a", "b"], n=3).choices == 6
    wrong = (None, 5, True, {}, [], [[]], [True], [None], [1.5], [2**63], [["a", None]], ["a"] * 4097)
    for prompt in (*wrong, {"prompt_string": "x", "multimodal_data": ["x"]}, {"prompt_string": 5}):
        with pytest.raises(UsageError, match=r"^prompt"):
            _text(prompt=prompt)


def test_completions_own_fields() -> None:
    ask = _text(echo=True, logprobs=3, suffix="z", best_of=1, max_tokens=0)
    assert (ask.echo, ask.logprobs, ask.suffix, ask.generates) == (True, 3, "z", False)
    assert _text(logprobs=True).logprobs == 0 and _text(logprobs=False).logprobs is None
    assert _text(suffix="").suffix is None and _text(n=2, best_of=2).n == 2
    for wrong in (
        {"logprobs": -1},
        {"logprobs": 1001},
        {"logprobs": "3"},
        {"suffix": 5},
        {"best_of": 2},
        {"echo": 1},
    ):
        with pytest.raises(UsageError, match=f"^{next(iter(wrong))}"):
            _text(**wrong)


def test_llama_servers_completion() -> None:
    ask = _llama(n_predict=5, n_probs=3, post_sampling_probs=True, stream=True, response_fields=["content"])
    assert (ask.sampling.max_tokens, ask.logprobs, ask.probabilities_after) == (5, 3, True)
    assert ask.names_tokens and ask.verbose and not _llama().names_tokens
    assert _llama(return_tokens=True).names_tokens
    assert _llama(n_probs=0).logprobs is None and _llama(logprobs=2).logprobs == 2
    for wrong in (True, -1, 1001, "3", 1.5):
        with pytest.raises(UsageError, match="n_probs"):
            _llama(n_probs=wrong)
    assert response_fields({}) == () and response_fields({"response_fields": ["a/b", "c"]}) == ("a/b", "c")
    for wrong_fields in (5, "content", [5], {"a": 1}):
        with pytest.raises(UsageError, match="response_fields"):
            response_fields({"response_fields": wrong_fields})


def test_infill_puts_files_before_the_prefix_and_the_prompt_after_it() -> None:
    body = {"input_prefix": "def f(", "input_suffix": "\n", "prompt": "a, ", "n_predict": 4}
    ask = read_infill({**body, "input_extra": [{"filename": "x", "text": "import y"}]}, defaults=_DEFAULTS)
    assert ask.prompts == ("import y\ndef f(a, ",) and ask.suffix == "\n" and ask.sampling.max_tokens == 4
    for name, wrong in (
        ("input_prefix", None), ("input_suffix", 5), ("prompt", []), ("input_extra", {"a": 1}),
        ("input_extra", [{"text": 5}]), ("input_extra", ["x"]),
    ):  # fmt: skip
        with pytest.raises(MemfitError, match=name):
            read_infill({**body, name: wrong}, defaults=_DEFAULTS)
