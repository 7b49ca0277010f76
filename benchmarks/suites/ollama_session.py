"""A session with a server through the ollama client, whose types check every answer.

    python ollama_session.py SERVER ENCODER MODEL

Runs in an environment that has `ollama`. SERVER generates, ENCODER embeds. Prints what was checked as JSON:
names, and what was wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import ollama

_SHORT = {"temperature": 0, "num_predict": 16, "seed": 1}
_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 99}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


def chat(ask: ollama.Client, model: str) -> None:
    answer = ask.chat(model, _QUESTION, options=_SHORT)
    assert answer.message.role == "assistant" and answer.message.content, answer
    assert answer.model == model and answer.done and answer.done_reason in ("stop", "length"), answer
    for figure in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
        assert isinstance(answer[figure], int), (figure, answer)
    assert answer.prompt_eval_count and answer.eval_count and answer.created_at, answer
    assert answer.eval_count <= 16, answer


def chat_stream(ask: ollama.Client, model: str) -> None:
    whole = ask.chat(model, _QUESTION, options=_SHORT)
    parts = list(ask.chat(model, _QUESTION, stream=True, options=_SHORT))
    assert len(parts) > 2, parts
    assert all(part.done is False for part in parts[:-1]) and parts[-1].done is True, parts
    assert "".join(part.message.content or "" for part in parts) == whole.message.content, parts
    assert parts[-1].eval_count == whole.eval_count and parts[-1].done_reason == whole.done_reason, parts[-1]


def chat_stop(ask: ollama.Client, model: str) -> None:
    whole = ask.chat(model, _QUESTION, options=_SHORT).message.content or ""
    stop = whole.split()[2]
    answer = ask.chat(model, _QUESTION, options=_SHORT | {"stop": [stop]})
    assert answer.done_reason == "stop" and stop not in (answer.message.content or ""), answer
    assert whole.startswith(answer.message.content or "-"), answer


def chat_logprobs(ask: ollama.Client, model: str) -> None:
    answer = ask.chat(model, _QUESTION, options=_SHORT, logprobs=True, top_logprobs=3)
    assert answer.logprobs and len(answer.logprobs) == answer.eval_count, answer
    for one in answer.logprobs:
        assert one.logprob <= 0 and one.top_logprobs and len(one.top_logprobs) == 3, one


def tools(ask: ollama.Client, model: str) -> None:
    """The demo may or may not call one: what comes is well formed, and a result is taken back."""
    answer = ask.chat(model, _QUESTION, tools=[_WEATHER], options=_SHORT)
    for call in answer.message.tool_calls or ():
        assert call.function.name == "weather" and isinstance(call.function.arguments, dict), answer
    called = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    turns: list[dict[str, Any]] = [
        *_QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "content": "18 degrees", "tool_name": "weather"},
    ]
    assert ask.chat(model, turns, tools=[_WEATHER], options=_SHORT).message, "no message"
    parts = list(ask.chat(model, _QUESTION, tools=[_WEATHER], options=_SHORT, stream=True))
    assert parts[-1].done, parts[-1]


def format_schema(ask: ollama.Client, model: str) -> None:
    options = _SHORT | {"num_predict": 128}
    value = json.loads(ask.chat(model, _QUESTION, format=_CITY, options=options).message.content or "")
    assert set(value) == {"city", "people"} and isinstance(value["people"], int), value
    assert isinstance(value["city"], str) and value["people"] <= 99, value


def format_json(ask: ollama.Client, model: str) -> None:
    asked = [{"role": "user", "content": 'Answer with the JSON {"a": 1}.'}]
    answer = ask.chat(model, asked, format="json", options=_SHORT | {"num_predict": 256})
    text = answer.message.content or ""
    assert text.lstrip().startswith("{"), text
    if answer.done_reason == "stop":
        json.loads(text)


def generate(ask: ollama.Client, model: str) -> None:
    answer = ask.generate(model, "The capital of France is", options=_SHORT)
    assert answer.response and answer.done and answer.eval_count, answer
    parts = list(ask.generate(model, "The capital of France is", options=_SHORT, stream=True))
    assert "".join(part.response or "" for part in parts) == answer.response, parts
    assert parts[-1].done and parts[-1].eval_count == answer.eval_count, parts[-1]


def generate_raw(ask: ollama.Client, model: str) -> None:
    """`raw` goes without the template, so it reads fewer tokens."""
    plain = ask.generate(model, "The capital of France is", options=_SHORT)
    raw = ask.generate(model, "The capital of France is", raw=True, options=_SHORT)
    assert (raw.prompt_eval_count or 0) < (plain.prompt_eval_count or 0), (plain, raw)
    system = ask.generate(model, "Hello", system="Answer in French.", options=_SHORT)
    assert system.response is not None, system


def load_and_unload(ask: ollama.Client, model: str) -> None:
    """A request without a prompt only loads; keep_alive is read."""
    answer = ask.generate(model, keep_alive="5m")
    assert answer.done and answer.done_reason == "load" and answer.response == "", answer
    assert ask.chat(model, [], keep_alive=300).done, "not done"


def listed(ask: ollama.Client, model: str) -> None:
    names = [one.model for one in ask.list().models]
    assert model in [(name or "").removesuffix(":latest") for name in names], names
    for one in ask.list().models:
        assert one.size and one.digest and one.modified_at and one.details, one
        assert one.details.format == "gguf" and one.details.quantization_level, one


def show(ask: ollama.Client, model: str) -> None:
    answer = ask.show(model)
    assert answer.template and answer.details and answer.details.family, answer
    assert answer.modelinfo and answer.modelinfo["general.architecture"] == answer.details.family, answer
    assert answer.capabilities and "completion" in answer.capabilities, answer.capabilities


def processes(ask: ollama.Client, model: str) -> None:
    ask.generate(model, "x", options={"num_predict": 1})
    running = ask.ps().models
    assert [(one.model or "").removesuffix(":latest") for one in running] == [model], running
    (one,) = running
    assert one.size and one.size_vram is not None and one.expires_at, one
    assert one.context_length, one


def pull(ask: ollama.Client, model: str) -> None:
    """Of what is there already: nothing is fetched."""
    assert ask.pull(model).status == "success"
    assert [part.status for part in ask.pull(model, stream=True)][-1] == "success"


def unknown_model(ask: ollama.Client, model: str) -> None:
    for call in (
        lambda: ask.chat("no-such-model", _QUESTION),
        lambda: ask.show("no-such-model"),
        lambda: ask.generate("no-such-model", "x"),
    ):
        try:
            call()
        except ollama.ResponseError as problem:
            assert problem.status_code == 404 and problem.error, problem.status_code
        else:
            raise AssertionError("an unknown model was answered")


def embed(ask: ollama.Client, model: str) -> None:
    one = ask.embed(model, "This is a test")
    two = ask.embed(model, ["This is a test", "Paris lies on the Seine"])
    assert len(one.embeddings) == 1 and len(two.embeddings) == 2, (len(one.embeddings), len(two.embeddings))
    assert abs(sum(value * value for value in one.embeddings[0]) - 1) < 1e-3, "not of length 1"
    assert max(abs(a - b) for a, b in zip(one.embeddings[0], two.embeddings[0], strict=True)) < 1e-3
    assert two.prompt_eval_count and one.total_duration is not None, two
    old = ask.embeddings(model, "This is a test")
    assert len(old.embedding) == len(one.embeddings[0]), len(old.embedding)


GENERATING: tuple[Callable[[ollama.Client, str], None], ...] = (
    *(chat, chat_stream, chat_stop, chat_logprobs, tools, format_schema, format_json, generate, generate_raw),
    *(load_and_unload, listed, show, processes, pull, unknown_model),
)


def main() -> None:
    server, encoder, model = sys.argv[1:]
    checks = []
    for check in (*GENERATING, embed):
        ask = ollama.Client(host=encoder if check is embed else server, timeout=120)
        try:
            check(ask, model)
        except Exception as problem:  # the next check still runs
            checks.append([check.__name__, f"{type(problem).__name__}: {problem}"[:400]])
        else:
            checks.append([check.__name__, ""])
    print(json.dumps(checks))


if __name__ == "__main__":
    main()
