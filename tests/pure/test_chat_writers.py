"""Answers as chats, completions and llama-server's own bodies: streams and whole answers say the same."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from answer_parts import PARTS, SPEED, answer_of, data_of, streamed

from memfit.engines.chat_format import Part, TextPart
from memfit.engines.requests import ChosenToken, Progress, Sampling
from memfit.errors import ContextExceededError, EngineError, UsageError
from memfit.openai.answers import Answer, AnswerWriter, Frame, Usage
from memfit.openai.ask import Ask
from memfit.openai.chat_writer import DONE, FINGERPRINT, ChatWriter
from memfit.openai.completion_writer import CompletionWriter
from memfit.openai.llama_answers import LlamaWriter, generation_settings

_TEXT: tuple[Part, ...] = (TextPart("Kö"), TextPart("ln\n"))
_TOKENS = (
    ChosenToken(token=7, piece=b"K\xc3", logprob=-0.5, top=((7, b"K\xc3", -0.5), (8, b"x", -math.inf))),
    ChosenToken(token=9, piece=b"\xb6ln\n", logprob=-math.inf),
)
_PROGRESS = Progress(number=0, total=20, shared=5, processed=15, seconds=0.25)
_CHAT = Ask(messages=({"role": "user", "content": "x"},))
_PROMPT = Ask(prompts=("x",))


def _made(ask: Ask) -> list[AnswerWriter]:
    return [ChatWriter(ask, "toy"), CompletionWriter(ask, "toy"), LlamaWriter(ask, "toy")]


def _entries(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    return [one for frame in frames if isinstance(frame.data, dict) for one in frame.data.get("choices", ())]


def test_a_chat_is_the_same_streamed_and_whole() -> None:
    answer = answer_of(PARTS, "tool_calls")
    body = ChatWriter(_CHAT, "toy").body([answer])
    message = body["choices"][0]["message"]
    frames = streamed(ChatWriter(replace(_CHAT, stream=True), "toy"), PARTS, answer)
    deltas = [one["delta"] for one in _entries(frames)]
    assert deltas[0] == {"role": "assistant", "content": None} and deltas[-1] == {}
    assert "".join(one.get("content") or "" for one in deltas) == message["content"] == "I look it up."
    assert "".join(one.get("reasoning_content", "") for one in deltas) == message["reasoning_content"]
    calls: list[dict[str, Any]] = []
    for delta in (one for each in deltas for one in each.get("tool_calls", ())):
        if "id" in delta:
            assert delta["index"] == len(calls) and delta["function"]["arguments"] == ""
            calls.append({"id": delta["id"], "type": delta["type"], "function": dict(delta["function"])})
        else:
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    assert calls == message["tool_calls"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": {"name": "Köln"}}
    reasons = [one["finish_reason"] for one in _entries(frames)]
    assert reasons[-1] == body["choices"][0]["finish_reason"] == "tool_calls" and not any(reasons[:-1])
    assert frames[-1] is DONE and not any("usage" in data_of(one) for one in frames[:-1])
    head = {name: data_of(frames[0])[name] for name in ("id", "created", "model", "system_fingerprint")}
    assert all({name: data_of(one)[name] for name in head} == head for one in frames[:-1])
    assert body["id"] != head["id"] and head["id"].startswith("chatcmpl-") and FINGERPRINT[0] == "b"


def test_a_call_without_text_has_null_as_content_and_text_is_never_null() -> None:
    calls = answer_of(PARTS[4:], "tool_calls")
    assert ChatWriter(_CHAT, "toy").body([calls])["choices"][0]["message"]["content"] is None
    empty = ChatWriter(_CHAT, "toy").body([answer_of(())])["choices"][0]["message"]
    assert empty == {"role": "assistant", "content": "", "refusal": None}


def test_usage_counts_each_prompt_once_and_comes_last_where_it_is_asked_for() -> None:
    ask = Ask(prompts=("x", "y"), n=2, stream=True, usage_in_stream=True)
    answers = [answer_of(_TEXT)] * 4
    for writer in (ChatWriter(ask, "toy"), CompletionWriter(ask, "toy")):
        usage = writer.body(answers)["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (40, 36, 76)
        assert usage["prompt_tokens_details"]["cached_tokens"] == 10
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 12
        frames = [*writer.begin(20), *writer.part(0, _TEXT[0], ()), *writer.end(answers)]
        last, done = frames[-2:]
        assert done is DONE and data_of(last)["usage"] == usage and data_of(last)["choices"] == []
        assert all(data_of(one)["usage"] is None for one in frames[:-2])


def test_every_choice_begins_and_has_its_index() -> None:
    ask = replace(_CHAT, n=3, stream=True)
    writer = ChatWriter(ask, "toy")
    assert [one["index"] for one in _entries(list(writer.begin(5)))] == [0, 1, 2]
    assert [one["index"] for one in writer.body([answer_of(_TEXT)] * 3)["choices"]] == [0, 1, 2]
    assert _entries(list(writer.part(2, _TEXT[0], ())))[0]["index"] == 2


@pytest.mark.parametrize("asked", [None, 0, 2])
def test_logprobs_are_the_same_streamed_and_whole(asked: int | None) -> None:
    answer = answer_of(_TEXT, tokens=_TOKENS)
    for ask, made in ((_CHAT, ChatWriter), (_PROMPT, CompletionWriter)):
        ask = replace(ask, logprobs=asked)
        whole = made(ask, "toy").body([answer])["choices"][0]["logprobs"]  # type: ignore[call-arg]
        frames = streamed(made(replace(ask, stream=True), "toy"), _TEXT, answer, _TOKENS)  # type: ignore[call-arg]
        parts = [one["logprobs"] for one in _entries(frames) if one["logprobs"]]
        if asked is None:
            assert whole is None and not parts
        elif made is ChatWriter:
            assert [token for one in parts for token in one["content"]] == whole["content"]
        else:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                if name != "text_offset":  # a token may be half a character, so that texts are no sums
                    assert [value for one in parts for value in one[name]] == whole[name]
        json.dumps([frame.data for frame in frames], allow_nan=False)


def test_tokens_in_each_apis_words() -> None:
    answer = answer_of(_TEXT, tokens=_TOKENS)
    chat = ChatWriter(replace(_CHAT, logprobs=2), "toy").body([answer])["choices"][0]["logprobs"]
    first, second = chat["content"]
    assert first["bytes"] == [75, 195] and first["token"] == "K�" and first["logprob"] == -0.5
    assert [one["logprob"] for one in first["top_logprobs"]] == [-0.5, -9999.0]
    assert second["logprob"] == -9999.0 and chat["refusal"] is None
    text = CompletionWriter(replace(_PROMPT, logprobs=2), "toy").body([answer])["choices"][0]["logprobs"]
    assert text["tokens"] == ["K�", "�ln\n"] and text["text_offset"] == [0, 2]
    assert text["token_logprobs"] == [-0.5, -9999.0] and text["top_logprobs"][0] == {"x": -9999.0, "K�": -0.5}
    unscored = (ChosenToken(token=1, piece=b"a"), *_TOKENS)
    echoed = CompletionWriter(replace(_PROMPT, logprobs=1), "toy").body([replace(answer, tokens=unscored)])
    assert echoed["choices"][0]["logprobs"]["token_logprobs"][0] == 0
    assert echoed["choices"][0]["logprobs"]["top_logprobs"][0] == {}
    for after, name in ((False, "logprob"), (True, "prob")):
        ask = replace(_PROMPT, logprobs=2, probabilities_after=after, names_tokens=True)
        found = LlamaWriter(ask, "toy").body([answer])
        assert found["tokens"] == [7, 9]
        one = found["completion_probabilities"][0]
        assert one["id"] == 7 and math.isclose(one[name], math.exp(-0.5) if after else -0.5)
        assert [each["id"] for each in one["top_probs" if after else "top_logprobs"]] == [7, 8]
        json.dumps(found, allow_nan=False)


def test_completions_offsets_go_on_from_piece_to_piece() -> None:
    writer = CompletionWriter(replace(_PROMPT, logprobs=0, n=2, stream=True), "toy")
    plain = tuple(ChosenToken(token=1, piece=piece, logprob=-1.0) for piece in (b"ab", b"c"))
    writer_frames = [
        *writer.part(0, TextPart("abc"), plain),
        *writer.part(1, TextPart("c"), plain[1:]),
        *writer.part(0, TextPart("c"), plain[1:]),
    ]
    assert [one["logprobs"]["text_offset"] for one in _entries(writer_frames)] == [[0, 2], [0], [3]]


def test_a_completion_is_the_same_streamed_and_whole() -> None:
    answer = answer_of(_TEXT, "length")
    for made in (CompletionWriter, LlamaWriter):
        frames = streamed(made(replace(_PROMPT, stream=True), "toy"), _TEXT, answer)  # type: ignore[arg-type]
        whole = made(_PROMPT, "toy").body([answer])  # type: ignore[arg-type]
        if made is CompletionWriter:
            entries = _entries(frames)
            assert "".join(one["text"] for one in entries) == whole["choices"][0]["text"] == "Köln\n"
            assert entries[-1]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"
        else:
            data = [data_of(one) for one in frames]
            assert "".join(one["content"] for one in data) == whole["content"]
            assert [one["stop"] for one in data] == [False, False, True]
            assert data[-1]["stop_type"] == whole["stop_type"] == "limit"


@pytest.mark.parametrize(
    ("reason", "stop", "kind"), [("stop", None, "eos"), ("stop", "END", "word"), ("length", None, "limit")]
)
def test_llama_servers_words_for_an_end(reason: Any, stop: str | None, kind: str) -> None:
    body = LlamaWriter(_PROMPT, "toy").body([answer_of(_TEXT, reason, stop=stop)])
    assert (body["stop_type"], body["stopping_word"], body["has_new_line"]) == (kind, stop or "", True)
    assert body["tokens_predicted"] == 9 and body["tokens_evaluated"] == 20 and body["tokens_cached"] == 28
    assert body["timings"]["prompt_per_second"] == 30.0 and body["timings"]["predicted_per_second"] == 4.0


def test_llama_servers_body_is_one_or_a_list_and_has_the_fields_that_are_wanted() -> None:
    answer = answer_of(_TEXT)
    assert isinstance(LlamaWriter(_PROMPT, "toy").body([answer]), dict)
    assert len(LlamaWriter(replace(_PROMPT, n=2), "toy").body([answer] * 2)) == 2
    assert isinstance(LlamaWriter(_PROMPT, "toy", lists=True).body([answer]), list)
    fields = ("content", "generation_settings/seed", "nothing", "content/x", "", "timings/prompt_n")
    found = LlamaWriter(_PROMPT, "toy", fields).body([answer])
    assert set(found) == {"content", "generation_settings/seed", "timings/prompt_n"}


def test_llama_servers_pieces_count_their_tokens() -> None:
    writer = LlamaWriter(replace(_PROMPT, logprobs=1, stream=True), "toy")
    data = [data_of(one) for one in streamed(writer, _TEXT, answer_of(_TEXT, tokens=_TOKENS), _TOKENS)]
    assert [one["tokens_predicted"] for one in data] == [1, 2, 9]
    assert [one["tokens"] for one in data] == [[7], [9], []]
    assert [len(one.get("completion_probabilities", ())) for one in data] == [1, 1, 0]


def test_settings_are_told_without_infinities() -> None:
    sampling = Sampling(logit_bias=((5, -math.inf), ("a", 1.0)), stop=("x",), top_n_sigma=-1.0)
    found = generation_settings(replace(_PROMPT, sampling=sampling, grammar="root"))
    assert found["logit_bias"] == [{"token": 5, "bias": None}, {"token": "a", "bias": 1.0}]
    assert found["n_predict"] == found["max_tokens"] == -1 and found["stop"] == ["x"]
    json.dumps(found, allow_nan=False)


def test_progress_and_timings_where_they_are_asked_for() -> None:
    for ask, timed in ((replace(_PROMPT, tells_timings=True), True), (_PROMPT, False)):
        for writer in _made(ask):
            list(writer.begin(20))
            (frame,) = writer.progress(0, _PROGRESS)
            told = data_of(frame)["prompt_progress"]
            assert told == {"total": 20, "cache": 5, "processed": 15, "time_ms": 250}
            if timed and not isinstance(writer, CompletionWriter):
                assert data_of(frame)["timings"]["prompt_n"] == 10
    ask = replace(_CHAT, tells_timings=True, verbose=True, stream=True)
    for chat in (ChatWriter(ask, "toy"), CompletionWriter(replace(ask, prompts=("x",)), "toy")):
        answer = replace(answer_of(_TEXT), prompt="<x>")
        body = chat.body([answer])
        assert body["timings"]["cache_n"] == 5 and body["__verbose"]["prompt"] == "<x>"
        assert data_of(next(iter(chat.end([answer]))))["timings"] == body["timings"]
    assert SPEED.prompt_tokens == 15


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UsageError("no"), "invalid_request_error"),
        (ContextExceededError("no", got=2, needed=1), "invalid_request_error"),
        (EngineError("no"), "server_error"),
    ],
)
def test_a_stream_that_fails_says_so_and_ends(error: Exception, kind: str) -> None:
    for writer in _made(_PROMPT):
        frames = list(writer.fail(error))  # type: ignore[arg-type]
        assert data_of(frames[0])["error"] == {"message": "no", "type": kind}
        assert (frames[-1] is DONE) == (not isinstance(writer, LlamaWriter))


def test_an_answer_of_nothing() -> None:
    nothing = Answer(text="", reason="stop", usage=Usage(prompt_tokens=3))
    for writer in _made(_PROMPT):
        json.dumps(writer.body([nothing]), allow_nan=False)
        json.dumps([one.data for one in streamed(writer, (), nothing)], allow_nan=False)
