"""Reasoning and calls: every family's syntax is read in any cut, nothing is lost, nothing raises."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from chat_templates import DERIVED, TEMPLATES

from memfit.engines.chat_format import (
    CallArguments,
    CallBegins,
    ChatFormat,
    FormatParser,
    Part,
    ReasoningPart,
    TextPart,
    analyse_template,
    call_grammar,
)
from memfit.engines.chat_format.families import FAMILIES
from memfit.engines.chat_format.form import CallSyntax
from memfit.engines.llamacpp.template import render_chat
from memfit.errors import UsageError

_REASON = "First the weather in Zürich,\nthen <b>notes</b>."
_TEXT = "Let me look that up: {x} [y]."
_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {
        "text": "Quotes \" and ', braces {}[], <tool_call> and </tool_call>, [ARGS]{}, 東京 🌸",
        "options": {"days": [1, 2.5, {"note": None}], "metric": True, "label": "</think> }]"},
    },
    {"text": "two\nlines", "options": {}},
)
_NAMES = ("get_weather", "write_note")


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": "A tool.", "parameters": parameters},
    }


_TOOLS = [_tool(name, text={"type": "string"}, options={"type": "object"}) for name in _NAMES]
_CALLS = list(zip(_NAMES, _ARGUMENTS, strict=True))


class _Answer(NamedTuple):
    text: str
    reasoning: str
    calls: list[tuple[str, Any]]


def _renderer(template: str) -> Any:
    def render(messages: Any, tools: Any = None, add_generation_prompt: bool = True, **options: Any) -> str:
        return render_chat(
            template,
            messages,
            {},
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            options=options,
        )

    return render


def _read(
    form: ChatFormat, pieces: Iterable[str], *, tools: Sequence[Mapping[str, Any]] = _TOOLS, **options: Any
) -> _Answer:
    parser = FormatParser(form, tools=tools, **options)
    parts: list[Part] = []
    for piece in pieces:
        parts += parser.feed(piece)
    return _answer(parts + parser.finish())


def _answer(parts: Iterable[Part]) -> _Answer:
    text = reasoning = ""
    calls: list[list[str]] = []
    for part in parts:
        match part:
            case TextPart():
                text += part.text
            case ReasoningPart():
                reasoning += part.text
            case CallBegins():
                assert part.index == len(calls)
                calls.append([part.name, ""])
            case CallArguments():
                assert part.index == len(calls) - 1
                calls[-1][1] += part.text
    return _Answer(text, reasoning, [(name, json.loads(written)) for name, written in calls])


def _cuts(raw: str) -> Iterator[list[str]]:
    yield [raw]
    yield list(raw)
    yield from ([raw[:at], raw[at:]] for at in range(1, len(raw)))
    dice = random.Random(20)
    for _ in range(200):
        places = [0, *sorted(dice.sample(range(1, len(raw)), dice.randint(1, 40))), len(raw)]
        yield [raw[start:end] for start, end in itertools.pairwise(places)]


def _rendered(
    template: str,
    *,
    text: str = _TEXT,
    reasoning: str = _REASON,
    arguments: Sequence[Mapping[str, Any]] = _ARGUMENTS,
) -> str:
    """The assistant's message as the template writes it."""
    functions = [{"name": name, "arguments": one} for name, one in zip(_NAMES, arguments, strict=True)]
    calls = [
        {"id": f"call0000{at}", "type": "function", "function": function}
        for at, function in enumerate(functions)
    ]
    message = {
        "role": "assistant",
        "content": text,
        "reasoning_content": reasoning,
        "tool_calls": calls,
    }
    whole = _renderer(template)([{"role": "user", "content": "Q"}, message], add_generation_prompt=False)
    answer = whole.partition("<|bot|>")[2].removesuffix("<|stop|>")
    assert isinstance(answer, str)
    return answer


# --- families ---


@pytest.mark.parametrize("family", TEMPLATES)
def test_every_cut_gives_the_same_answer(family: str) -> None:
    form = analyse_template(_renderer(TEMPLATES[family]), TEMPLATES[family])
    assert form.family == family
    assert form.has_tools
    reasoning = _REASON if _REASON in _rendered(TEMPLATES[family]) else ""
    assert reasoning or form.reasoning is None
    raw = _rendered(TEMPLATES[family])
    for pieces in _cuts(raw):
        assert _read(form, pieces) == _Answer(_TEXT, reasoning, _CALLS)


@pytest.mark.parametrize("name", DERIVED)
def test_a_syntax_that_nobody_declared(name: str) -> None:
    form = analyse_template(_renderer(DERIVED[name]), DERIVED[name])
    assert form.family == ""
    assert form.has_tools
    assert len(form.calls) == 1
    raw = _rendered(DERIVED[name])
    for pieces in ([raw], list(raw)):
        assert _read(form, pieces) == _Answer(_TEXT, _REASON, _CALLS)


def test_a_template_without_tools_is_plain_text() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    form = analyse_template(_renderer(template), template)
    assert form == ChatFormat()
    assert not form.needs_special
    raw = " <tool_call>{}</tool_call> <think>\n"
    assert _read(form, list(raw)) == _Answer(raw, "", [])


def test_a_broken_template_is_plain_text() -> None:
    template = "{{ messages[7].content }}{{ raise_exception('no') }}"
    assert analyse_template(_renderer(template), template) == ChatFormat()


def test_a_template_that_writes_something_else_than_its_family_is_read_as_it_writes() -> None:
    template = DERIVED["array in a section"] + "{# <tool_call> and </tool_call> #}"
    form = analyse_template(_renderer(template), template)
    assert form.family == ""
    assert form.calls[0].section_start == "<acts>"


@pytest.mark.parametrize("family", FAMILIES)
def test_formats_go_through_json(family: str) -> None:
    form = FAMILIES[family].form
    assert ChatFormat.from_json(json.loads(json.dumps(form.to_json()))) == form
    assert form.needs_special
    assert form.shows(form.markers[0])
    assert not form.shows("<|im_end|>")


def test_a_prompt_that_opens_reasoning() -> None:
    form = FAMILIES["hermes"].form
    assert form.opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not form.opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not ChatFormat().opens_reasoning("<think>")


# --- what is text, what is reasoning ---

_HERMES = FAMILIES["hermes"].form
_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def test_reasoning_that_the_prompt_opened() -> None:
    for raw in ("why\n</think>\n\nBecause.", "<think>\nwhy\n</think>\n\nBecause."):
        assert _read(_HERMES, list(raw), in_reasoning=True) == _Answer("Because.", "why", [])


def test_a_call_inside_reasoning() -> None:
    raw = f"a {_CALL} b</think>c"
    assert _read(_HERMES, [raw], in_reasoning=True) == _Answer("c", f"a {_CALL} b", [])
    inside = "a\n<tool_call>\n<function=f>\n</function>\n</tool_call>"
    form = FAMILIES["qwen-xml"].form  # which ends reasoning by a call
    assert _read(form, [inside], in_reasoning=True) == _Answer("", "a", [("f", {})])


def test_an_answer_that_talks_about_reasoning_markers() -> None:
    raw = "Models write <think> first, and </think> then."
    assert _read(_HERMES, list(raw)) == _Answer(raw, "", [])


def test_without_reading_reasoning_it_is_text() -> None:
    raw = f"<think>\nwhy {_CALL}</think>\nBecause. {_CALL}"
    read = _read(_HERMES, list(raw), parse_reasoning=False)
    assert read.text.split() == f"<think>\nwhy {_CALL}</think>\nBecause.".split()
    assert read.reasoning == ""
    assert read.calls == [("f", {"a": 1})]


def test_without_reading_calls_they_are_text() -> None:
    assert _read(_HERMES, list(_CALL), parse_calls=False) == _Answer(_CALL, "", [])


def test_white_space_between_words_stays() -> None:
    assert _read(_HERMES, [f"  before \n{_CALL} after \n"]) == _Answer(
        "  before \n after", "", [("f", {"a": 1})]
    )
    assert _read(_HERMES, list(" just text \n")) == _Answer(" just text \n", "", [])


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("family", "raw"),
    [
        ("hermes", 'I check.\n<tool_call>\n{"name": "f", "arguments": {"a": "b'),
        ("hermes", 'I check.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}</tool_call>'),
        ("hermes", "I check. <tool_call>not JSON</tool_call>"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>"),
        ("hermes", '<tool_call>{"name": "f", "arguments": ' + "[" * 500),
        ("qwen-xml", "<tool_call>\n<function=f>\n<parameter=a>\nrm -rf /"),
        ("glm", "Calls stand between <tool_call> and </tool_call>."),
        ("mistral-named", "[TOOL_CALLS]f[ARGS] no JSON"),
        ("mistral-list", '[TOOL_CALLS] [{"name": "f"'),
        ("llama-3", '{"name": "stranger", "parameters": {}}'),
        ("llama-3", '{"a": 1} is a dict'),
        ("llama-4", "[write_note(text='a"),
        ("llama-4", "[1, 2] and [x(y)] are lists"),
        ("gemma-4", "<|tool_call>call:f no brace<tool_call|>"),
        ("deepseek-v3.1", "<｜tool▁calls▁begin｜>f<｜tool▁sep｜>{}<｜tool▁calls▁end｜>"),  # noqa: RUF001
        ("gpt-oss", "An answer without any header."),
    ],
)
def test_what_is_no_call_is_text_as_it_stands(family: str, raw: str) -> None:
    form = FAMILIES[family].form
    for pieces in ([raw], list(raw)):
        assert _read(form, pieces) == _Answer(raw, "", [])


def test_what_is_no_call_is_told() -> None:
    parser = FormatParser(_HERMES)
    parser.feed("<tool_call>\n{'name")
    parser.finish()
    assert parser.calls == 0
    assert parser.warning is not None
    assert "<tool_call>" in parser.warning


def test_calls_before_a_cut_one_stay() -> None:
    raw = f'{_CALL}\n<tool_call>\n{{"name": "g", "arg'
    read = _read(_HERMES, [raw])
    assert read.calls == [("f", {"a": 1})]
    assert read.text.strip() == '<tool_call>\n{"name": "g", "arg'


def test_calls_after_a_bad_one_count() -> None:
    assert _read(_HERMES, [f"<tool_call>{{bad}}</tool_call>{_CALL}"]).calls == [("f", {"a": 1})]


def test_half_a_surrogate_pair_has_utf_8() -> None:
    raw = '<tool_call>{"name": "f", "arguments": {"a": "\\ud83c"}}</tool_call>'
    parts = FormatParser(_HERMES).feed(raw)
    assert [part.text.encode() for part in parts if isinstance(part, CallArguments)]


_SOUP = ("{", "}", "[", "]", '"', "\\", "'", ":", ",", "(", ")", "=", "\n", " ", "a", "f", "word", "1", "é")


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_raises_and_no_word_is_lost(family: str) -> None:
    form = FAMILIES[family].form
    dice = random.Random(family)
    tools = [_tool("f", a={"type": ["integer", "null"]}, word={"type": "string"})]
    for _ in range(150):
        pieces = [dice.choice(form.markers) if dice.random() < 0.4 else dice.choice(_SOUP) for _ in range(60)]
        opened = dice.random() < 0.3
        raw = "".join(pieces)
        answer = _read(form, [raw], tools=tools, in_reasoning=opened)
        assert answer == _read(form, list(raw), tools=tools, in_reasoning=opened)
        said = answer.text + answer.reasoning + json.dumps(answer.calls, ensure_ascii=False)
        wanted = raw
        for marker in form.markers:
            wanted = wanted.replace(marker, " ")
        lost = Counter(re.findall("word", wanted)) - Counter(re.findall("word", said))
        assert not lost, raw


def test_the_window_stays_small_while_a_call_is_held() -> None:
    """What is read is looked at again no more, so that time grows with the length alone."""
    for family, start in (
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "'),
        ("qwen-xml", "<tool_call>\n<function=f>\n<parameter=a>\n</parameter> "),
        ("gemma-4", '<|tool_call>call:f{a:<|"|>'),
        ("llama-4", "[f(a='"),
        ("hermes", "<think>"),
    ):
        parser = FormatParser(FAMILIES[family].form, tools=[_tool("f", a={"type": "string"})])
        parser.feed(start)
        for _ in range(300):
            parser.feed("some words </par <tool")
            assert len(parser._window.text) < 200


# --- arguments ---


@pytest.mark.parametrize(
    ("schema", "raw", "value"),
    [
        ({"type": "string"}, "007", "007"),
        ({"type": "string"}, "  two  spaces\n", "  two  spaces\n"),
        ({"type": "string"}, "null", "null"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "gym", "gym"),
        ({"type": "integer"}, "5", 5),
        ({"type": "number"}, "1e20", 1e20),
        ({"type": "boolean"}, "True", True),
        ({"type": "integer"}, "many", "many"),
        ({"type": "array"}, '["a", 1]', ["a", 1]),
        ({"type": "object"}, "{'a': [None, True, 'x\\ty']}", {"a": [None, True, "x\ty"]}),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "5", 5),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "five", "five"),
        ({"$ref": "#/$defs/n"}, "5", 5),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({}, '{"a": 1}', {"a": 1}),
        ({}, "02139", "02139"),
    ],
)
def test_raw_values_have_the_types_of_the_schema(schema: Any, raw: str, value: Any) -> None:
    tool = _tool("f", a=schema)
    tool["function"]["parameters"]["$defs"] = {"n": {"type": "integer"}}
    text = f"<tool_call>f<arg_key>a</arg_key><arg_value>{raw}</arg_value></tool_call>"
    assert _read(FAMILIES["glm"].form, [text], tools=[tool]).calls == [("f", {"a": value})]


def test_values_that_hold_their_own_tags() -> None:
    form = FAMILIES["qwen-xml"].form
    value = "Close by </parameter> and </function>, open by\n<parameter=b>."
    raw = f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"
    assert _read(form, list(raw)).calls == [("f", {"a": value})]


def test_missing_ends() -> None:
    form = FAMILIES["qwen-xml"].form
    tools = [_tool("f", a={"type": "string"}, b={"type": "integer"})]
    raw = "<function=f>\n<parameter=a>\nx\n<parameter=b>\n2\n</function>\n</tool_call>"
    for pieces in ([raw], list(raw)):
        assert _read(form, pieces, tools=tools) == _Answer("", "", [("f", {"a": "x", "b": 2})])


def test_ids_that_models_write() -> None:
    raw = "<|tool_call_begin|>functions.f:3<|tool_call_argument_begin|>{}<|tool_call_end|>"
    assert FormatParser(FAMILIES["kimi-k2"].form).feed(raw)[0] == CallBegins(0, "functions.f:3", "f")
    raw = "[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}"
    assert FormatParser(FAMILIES["mistral-named"].form).feed(raw)[0] == CallBegins(0, "abc123def", "f")


# --- forced calls ---

llguidance = pytest.importorskip("llguidance", reason="grammars need llguidance")


class _Vocabulary:
    """Every byte, and some control tokens."""

    eos_token_id = 0
    bos_token_id = None
    special = ("<end>", "<tool_call>", "</tool_call>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call>")
    special_token_ids = tuple(range(len(special)))
    tokens = (*(name.encode() for name in special), *(bytes([byte]) for byte in range(256)))

    def __call__(self, text: bytes | str) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        return [byte + len(self.special) for byte in data]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary()), n_vocab=len(_Vocabulary.tokens))


def _tokens(text: str, special: Iterable[str]) -> list[int]:
    """As the model's tokenizer cuts: control tokens, and bytes."""
    names = sorted(special, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
    found = []
    for part in parts:
        found += [_Vocabulary.special.index(part)] if part in names else _Vocabulary()(part)
    return found


def _accepts(tokenizer: Any, grammar: str, tokens: list[int]) -> bool:
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    if matcher.validate_tokens(tokens) != len(tokens):
        return False
    matcher.consume_tokens(tokens)
    return bool(matcher.is_accepting())


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_forced_call_is_what_the_template_writes(tokenizer: Any, family: str) -> None:
    form = FAMILIES[family].form
    arguments = [{"text": text, "options": {"days": [1, 2.5], "a": "b"}} for text in ("{é} <tool_call>", "")]
    raw = _rendered(TEMPLATES[family], text="", reasoning="", arguments=arguments).strip()
    for marker in (*form.dropped, "<|start|>assistant", "<|python_start|>"):
        raw = raw.removeprefix(marker)
    raw = raw.removesuffix("<|python_end|>")
    if family == "gpt-oss":
        raw = raw.partition("<|call|>")[0]  # one call a turn
    grammar = call_grammar(form, _TOOLS, choice="required", parallel=True)
    assert _accepts(tokenizer, grammar, _tokens(raw, ()))
    assert not _accepts(tokenizer, grammar, _tokens("Hello", ()))
    assert not _accepts(tokenizer, grammar, _tokens(raw.replace("get_weather", "stranger"), ()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_grammar(tokenizer: Any, family: str) -> None:
    form = FAMILIES[family].form
    special = [one for one in form.markers if one.startswith(("<", "["))]
    for choice, opened, tokens in (
        ("required", False, special),
        ("write_note", True, ()),
        ("write_note", True, dict.fromkeys(special, 1)),
    ):
        grammar = call_grammar(
            form,
            _TOOLS,
            choice=choice,
            parallel=opened,
            in_reasoning=opened,
            special_tokens=[one for one in tokens if one in _Vocabulary.special]
            if isinstance(tokens, list)
            else tokens,
        )
        assert not llguidance.LLMatcher(tokenizer, grammar, log_level=0).get_error(), grammar


def test_control_tokens_and_letters(tokenizer: Any) -> None:
    raw = f"thoughts {{}}</think>\n\n{_CALL}"
    tools = [_tool("f", a={"type": "integer"})]
    ids = {name: at for at, name in enumerate(_Vocabulary.special)}
    for special in ((), ("</think>",), ("<tool_call>", "</tool_call>", "</think>"), ids):
        grammar = call_grammar(
            _HERMES, tools, choice="f", parallel=False, in_reasoning=True, special_tokens=special
        )
        assert _accepts(tokenizer, grammar, _tokens(raw, special))
        assert not _accepts(tokenizer, grammar, _tokens(raw.replace("1", '"one"'), special))
    grammar = call_grammar(
        FAMILIES["mistral-named"].form, tools, choice="f", parallel=False, special_tokens=ids
    )
    assert _accepts(tokenizer, grammar, _tokens('[TOOL_CALLS]f[ARGS]{"a": 1}', ids))


def test_a_single_call(tokenizer: Any) -> None:
    tools = [_tool("f", a={"type": "integer"})]
    twice = _tokens(f"{_CALL}\n{_CALL}", ())
    for parallel in (True, False):
        grammar = call_grammar(_HERMES, tools, choice="required", parallel=parallel)
        assert _accepts(tokenizer, grammar, twice) == parallel


def test_a_schema_that_cannot_be_enforced_still_gives_a_call(tokenizer: Any) -> None:
    tools = [_tool("f", a={"not": {"pattern": "(?=x)"}})]
    grammar = call_grammar(_HERMES, tools, choice="f", parallel=False)
    assert _accepts(tokenizer, grammar, _tokens(_CALL, ()))


def test_what_cannot_be_forced() -> None:
    with pytest.raises(UsageError, match="no syntax"):
        call_grammar(ChatFormat(), _TOOLS, choice="required", parallel=True)
    with pytest.raises(UsageError, match="no tool"):
        call_grammar(_HERMES, _TOOLS, choice="stranger", parallel=True)
    assert CallSyntax(kind="json") == CallSyntax(kind="json")
