"""Tool calls and reasoning: what the parser of chat formats reads out of recorded and of rendered answers.

    python benchmarks/tool_calls.py canitoolcall [--show FIXTURE]
    python benchmarks/tool_calls.py templates [--show TEMPLATE]

`canitoolcall`: the 469 recorded answers of the package canitoolcall 0.1.1, which is installed in an
environment of its own; in one piece, in single characters, and in five random cuts each. Its checks judge.
`templates`: answers that llama.cpp's own templates render, in every cut into two, in single characters and in
200 random cuts. A model's template comes from the sources of the pinned llama-cpp-python
(~/.cache/memfit/peers, see benchmarks/peers/build); a family without one there goes by its declared format.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "memfit"
_TEMPLATES = next(_CACHE.glob("peers/*/*/vendor/llama.cpp/models/templates"), Path("none"))
_SUITE = "canitoolcall==0.1.1"

# A suite's model → llama.cpp's template of it, or the declared format that holds where there is none.
_MODELS = {
    "deepseek-ai/DeepSeek-V3-0324": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3.1": "deepseek-ai-DeepSeek-V3.1.jinja",
    "deepseek-ai/DeepSeek-V3.2": "deepseek-ai-DeepSeek-V3.2.jinja",
    "deepseek-ai/DeepSeek-V4-Flash": "deepseek-ai-DeepSeek-V4.jinja",
    "deepseek-ai/DeepSeek-V4.1-Flash": "deepseek-v4.1",
    "google/gemma-4-31B-it": "google-gemma-4-31B-it.jinja",
    "zai-org/GLM-4.5": "GLM-4.6.jinja",
    "zai-org/GLM-4.7": "GLM-4.7-Flash.jinja",
    "zai-org/GLM-5.3": "GLM-4.7-Flash.jinja",
    "openai/gpt-oss-20b": "openai-gpt-oss-120b.jinja",
    "openai/gpt-oss-120b": "openai-gpt-oss-120b.jinja",
    "moonshotai/Kimi-K2.6": "Kimi-K2-Thinking.jinja",
    "moonshotai/Kimi-K2-Instruct": "Kimi-K2-Instruct.jinja",
    "moonshotai/Kimi-K2-Instruct-0905": "Kimi-K2-Instruct.jinja",
    "moonshotai/Kimi-K3": "Kimi-K3.jinja",
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama-Llama-3.3-70B-Instruct.jinja",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "llama-4",
    "mistralai/Magistral-Small-2506": "mistral-named-think",
    "mistralai/Magistral-Small-2509": "mistralai-Ministral-3-14B-Reasoning-2512.jinja",
    "mistralai/Ministral-3-14B-Reasoning-2512": "mistralai-Ministral-3-14B-Reasoning-2512.jinja",
    "mistralai/Ministral-3-14B-Instruct-2512": "mistralai-Ministral-3-14B-Reasoning-2512.jinja",
    "mistralai/Devstral-Small-2-24B-Instruct-2512": "unsloth-mistral-Devstral-Small-2507.jinja",
    "mistralai/Devstral-Small-2507": "unsloth-mistral-Devstral-Small-2507.jinja",
    "mistralai/Mistral-Small-4-119B-2603": "mistralai-Ministral-3-14B-Reasoning-2512.jinja",
    "mistralai/Mistral-Medium-3.5-128B": "mistralai-Ministral-3-14B-Reasoning-2512.jinja",
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": "Mistral-Small-3.2-24B-Instruct-2506.jinja",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistralai-Mistral-Nemo-Instruct-2407.jinja",
    "Qwen/Qwen3-0.6B": "Qwen-Qwen3-0.6B.jinja",
    "Qwen/Qwen3-4B-Thinking-2507": "Qwen-Qwen3-0.6B.jinja",
    "Qwen/Qwen3-4B-Instruct-2507": "Qwen-Qwen3-0.6B.jinja",
    "Qwen/Qwen3.5-9B": "Qwen3.5-4B.jinja",
    "Qwen/Qwen3.6-35B-A3B": "Qwen3.5-4B.jinja",
    "Qwen/Qwen3.8-27B": "Qwen3.5-4B.jinja",
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": "Qwen3-Coder.jinja",
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": "Qwen3-Coder.jinja",
    "Qwen/Qwen3-Coder-Next": "Qwen3-Coder.jinja",
}
_SPECIAL = {"bos_token": "", "eos_token": ""}


def _renderer(template: str) -> Any:
    from memfit.engines.llamacpp.template import render_chat

    def render(
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        return render_chat(
            template,
            messages,
            _SPECIAL,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            options=options,
        )

    return render


def _format(name: str) -> Any:
    from memfit.engines.chat_format import analyse_template
    from memfit.engines.chat_format.families import FAMILIES

    if name in FAMILIES:
        return FAMILIES[name].form
    template = (_TEMPLATES / name).read_text(encoding="utf-8")
    return analyse_template(_renderer(template), template)


def _parsed(form: Any, pieces: Iterable[str], tools: Any, in_reasoning: bool) -> dict[str, Any]:
    """What a client puts together from the parts, and whatever the parser raised."""
    from memfit.engines import chat_format

    content, reasoning, calls = [], [], []
    parser = chat_format.FormatParser(form, tools=tools, in_reasoning=in_reasoning)
    try:
        parts = [part for piece in pieces for part in parser.feed(piece)] + parser.finish()
    except Exception as error:
        return {"exception": f"{type(error).__name__}: {error}"}
    for part in parts:
        match part:
            case chat_format.TextPart():
                content.append(part.text)
            case chat_format.ReasoningPart():
                reasoning.append(part.text)
            case chat_format.CallBegins():
                calls.append({"name": part.name, "arguments_raw": ""})
            case chat_format.CallArguments():
                calls[part.index]["arguments_raw"] += part.text
    return {"content": "".join(content), "reasoning_content": "".join(reasoning), "tool_calls": calls}


# --- recorded answers ---


def canitoolcall(show: str) -> None:
    """Installs the suite, and runs `_judge` inside."""
    from suites.environments import environment  # needs packages that the suite's own has not

    python = environment("canitoolcall", _SUITE)
    paths = {**os.environ, "PYTHONPATH": str(_ROOT / "src")}
    subprocess.run([python, __file__, "judge", "--show", show], check=True, env=paths)


def _judge(show: str) -> None:
    from canitoolcall.checks import case_status, run_checks
    from canitoolcall.chunking import DEFAULT_STRATEGIES, split_text
    from canitoolcall.fixtures import load_fixtures
    from canitoolcall.results import Observation, ParseResult
    from canitoolcall.runner import family_for

    formats = {name: _format(name) for name in set(_MODELS.values())}
    table: dict[str, Counter[str]] = {}
    for fixture in load_fixtures(None):
        family = family_for(fixture)
        form = formats[_MODELS[fixture.models[0]]]
        prompt = fixture.generation_prompt
        if prompt is None:
            prompt = next(
                one.default_generation_prompt
                for one in family.reference_models
                if one.repo.startswith(fixture.models[0])
            )
        opened = form.opens_reasoning(prompt or "")
        pieces = {
            strategy.id: split_text(fixture.raw_output, strategy)
            for strategy in DEFAULT_STRATEGIES
            if strategy.id != "special"
        }
        streams = {name: _parsed(form, cut, fixture.tools, opened) for name, cut in pieces.items()}
        whole = streams["one"]
        seen = Observation(
            nonstream=ParseResult.from_dict(whole),
            streams={name: ParseResult.from_dict(one) for name, one in streams.items()},
        )
        rows = run_checks(fixture, family, seen)
        status = case_status(rows).value
        counts = table.setdefault(fixture.family, Counter())
        counts[status] += 1
        counts["raised"] += any("exception" in one for one in streams.values())
        counts["lost"] += bool(lost := _lost(fixture, whole, form.markers))
        if lost or status in ("fail", "error") or show == fixture.id:
            problem = next((row for row in rows if row.status.value == status), None)
            print(f"{status:9} {fixture.id}  {'LOST ' + ' '.join(lost) if lost else ''}")
            if problem:
                print(f"          {problem.check}: {(problem.detail or '')[:300]}")
    _print_table(table)


def _lost(fixture: Any, parsed: Mapping[str, Any], markers: Sequence[str]) -> list[str]:
    """Words that came out nowhere: of the expected result, or of a raw output that holds no call."""
    if "exception" in parsed:
        return []
    texts = [parsed["content"], parsed["reasoning_content"]]
    for call in parsed["tool_calls"]:
        texts += [call["name"], *_strings(json.loads(call["arguments_raw"]))]
    found = Counter(_words(texts))
    if fixture.expected is None:
        return list((Counter(_words([_without_markers(fixture, markers)])) - found).keys())
    wanted = [fixture.expected.content or "", fixture.expected.reasoning_content or ""]
    for call in fixture.expected.tool_calls:
        wanted += [call.name, *_strings(call.arguments)]
    return list((Counter(_words(wanted)) - found).keys())


def _without_markers(fixture: Any, markers: Sequence[str]) -> str:
    # The headers of gpt-oss's messages are markers as well.
    text = re.sub(r"<\|channel\|>[\w= ]*(?=<\|)|<\|start\|>assistant", " ", fixture.raw_output)
    for marker in markers:
        text = text.replace(marker, " ")
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    else:
        yield str(value)


def _words(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from re.findall(r"\w+", text)


def _print_table(table: Mapping[str, Counter[str]]) -> None:
    total: Counter[str] = sum(table.values(), Counter())
    print(
        f"\n{'family':14} {'pass':>5} {'soft':>5} {'fail':>5} {'share':>7} {'raised':>7} {'lost a word':>12}"
    )
    for name, counts in [*sorted(table.items()), ("all", total)]:
        good = counts["pass"] + counts["soft_pass"]
        bad = counts["fail"] + counts["error"]
        print(
            f"{name:14} {counts['pass']:5} {counts['soft_pass']:5} {bad:5} {good / (good + bad):7.1%} "
            f"{counts['raised']:7} {counts['lost']:12}"
        )


# --- rendered answers ---

_REASON = "First the weather in Zürich,\nthen <b>notes</b>."
_TEXT = "Let me look that up: {x} [y]."
_ARGUMENTS = (
    {
        "text": "Quotes \" and ' and \\, braces {}[], <tool_call> and </tool_call>, [ARGS]{}, 東京 🌸",
        "options": {"days": [1, 2.5, {"note": None}], "metric": True, "label": '</think> "}]'},
    },
    {"text": "two\nlines", "options": {}},
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "description": "A text."},
                    "options": {"type": "object", "description": "Options."},
                },
                "required": ["text", "options"],
            },
        },
    }
    for name in ("get_weather", "write_note")
]
# What ends a turn after a call: tokens that end generation, and are never in its text.
_TURN_ENDS = (
    *("<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<SPECIAL_12>", "<|tool_response>", "<|eom_id|>"),  # noqa: RUF001
    *("<｜hy_eos:opensource｜>", "<|call|>"),  # noqa: RUF001
)
_ASKED = {"role": "user", "content": "A question."}


def templates(show: str) -> None:
    """Every template of llama.cpp's that renders calls."""
    failed = []
    good = 0
    for path in sorted(_TEMPLATES.glob("*.jinja")):
        if show and show not in path.name:
            continue
        form = _format(path.name)
        raw, opened = _answer(form, path.read_text(encoding="utf-8"))
        if raw is None:
            print(f"{path.name:60} renders no call that its format reads")
            continue
        wrong = _wrong(form, raw, opened)
        good += not wrong
        print(f"{path.name:60} {len(raw):5} letters  {wrong or 'the same in every cut'}")
        if show:
            print(raw)
        failed += [path.name] if wrong else []
    print(f"\n{good} templates: the same calls, text and reasoning in every cut; {len(failed)} not: {failed}")


def _answer(form: Any, template: str) -> tuple[str | None, bool]:
    """An answer as a model with this template writes it: rendered, with what the template leaves out."""
    render = _renderer(template)
    calls = _rendered_calls(render, form)
    if calls is None:
        return None, False
    opened = form.opens_reasoning(render([_ASKED], tools=_TOOLS))
    if form.calls[0].kind == "harmony":
        message = "<|start|>assistant<|channel|>"
        return (
            f"<|channel|>analysis<|message|>{_REASON}<|end|>{message}commentary<|message|>{_TEXT}<|end|>"
            f"<|start|>assistant{calls}",
            False,
        )
    thought = ""
    if form.reasoning is not None:
        start = "" if opened else form.reasoning.start + "\n"
        thought = f"{start}{_REASON}\n{form.reasoning.end}\n\n"
    return f"{thought}{_TEXT}\n\n{calls}", opened


def _rendered_calls(render: Any, form: Any) -> str | None:
    """The calls alone, as the template writes them. Where it has one an answer: one after the other."""
    from memfit.errors import MemfitError

    joint = "<|call|><|start|>assistant" if any(one.kind == "harmony" for one in form.calls) else "\n"
    for together, as_text, content, number in itertools.product(
        (True, False), (False, True), ("", None), ("call0000{1}", "functions.{0}:{1}")
    ):
        try:
            parts = [_part(render, form, one, as_text, content, number) for one in _groups(together)]
        except MemfitError:
            continue
        if _called(_parsed(form, [joint.join(parts)], _TOOLS, False)) == _wanted():
            return joint.join(parts)
    return None


def _groups(together: bool) -> list[list[int]]:
    return [[0, 1]] if together else [[0], [1]]


def _part(
    render: Any, form: Any, numbers: Sequence[int], as_text: bool, content: str | None, number: str
) -> str:
    """The assistant's own part of a rendering with these calls, without what ends its turn."""
    from memfit.engines.chat_format.probes import between_markers

    mark = "A marked content."
    said = render([_ASKED, {"role": "assistant", "content": mark}], tools=_TOOLS, add_generation_prompt=False)
    before, _, after = said.partition(mark)
    for marker in form.dropped:
        after = after.removeprefix(marker)
    calls = []
    for one in numbers:
        name, arguments = _wanted()[one]
        written = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
        function = {"name": name, "arguments": written}
        calls.append({"id": number.format(name, one), "type": "function", "function": function})
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    text = render([_ASKED, message], tools=_TOOLS, add_generation_prompt=False)
    part = between_markers(text, before, after)
    for end in _TURN_ENDS:
        part = part.removesuffix(end)
    return " " + part if part.startswith("to=") else part


def _wanted() -> list[tuple[str, Any]]:
    return [(tool["function"]["name"], value) for tool, value in zip(_TOOLS, _ARGUMENTS, strict=True)]


def _called(parsed: Mapping[str, Any]) -> list[tuple[str, Any]]:
    calls = parsed.get("tool_calls", ())
    return [(call["name"], json.loads(call["arguments_raw"])) for call in calls]


def _wrong(form: Any, raw: str, opened: bool) -> str:
    """The first cut in which something else comes out; empty: none."""
    for pieces in _cuts(raw):
        parsed = _parsed(form, pieces, _TOOLS, opened)
        got = (parsed.get("content", parsed), parsed.get("reasoning_content"), _called(parsed))
        reasoning = "" if form.reasoning is None else _REASON
        if got != (_TEXT, reasoning, _wanted()):
            return f"{[len(piece) for piece in pieces][:9]}: {got}"
    return ""


def _cuts(raw: str) -> Iterator[list[str]]:
    yield [raw]
    yield list(raw)
    yield from ([raw[:at], raw[at:]] for at in range(1, len(raw)))
    dice = random.Random(20)
    for _ in range(200):
        places = [0, *sorted(dice.sample(range(1, len(raw)), dice.randint(1, 40))), len(raw)]
        yield [raw[start:end] for start, end in itertools.pairwise(places)]


_WHAT = {"canitoolcall": canitoolcall, "judge": _judge, "templates": templates}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(_WHAT))
    parser.add_argument("--show", default="")
    arguments = parser.parse_args()
    _WHAT[arguments.what](arguments.show)


if __name__ == "__main__":
    main()
