"""Answers as llama-server's own /completion and /infill write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memfit.engines.chat_format import Part, TextPart
from memfit.engines.requests import ChosenToken, Progress, Sampling
from memfit.errors import MemfitError
from memfit.openai.answers import Answer, Frame
from memfit.openai.ask import Ask
from memfit.openai.logprobs import llama_probabilities
from memfit.openai.responses import error_object
from memfit.openai.timings import progress_timings, prompt_progress, timings

__all__ = ["LlamaWriter", "generation_settings", "llama_body"]

_SEPARATOR = "/"  # in response_fields, between an object and its field


class LlamaWriter:
    """Satisfies answers.AnswerWriter."""

    def __init__(self, ask: Ask, model: str, fields: Sequence[str] = (), *, lists: bool = False) -> None:
        """`fields` are those of the body that are wanted; (): all. `lists` writes a list, even of one."""
        self._ask, self._model, self._fields, self._lists = ask, model, fields, lists
        self._written = [0] * ask.choices  # tokens

    def begin(self, prompt_tokens: int) -> Iterable[Frame]:
        self._prompt_tokens = prompt_tokens
        return ()

    def progress(self, choice: int, progress: Progress) -> Iterable[Frame]:
        data = {**self._piece(choice, "", ()), "prompt_progress": prompt_progress(progress)}
        if self._ask.tells_timings:
            data["timings"] = progress_timings(progress)
        yield Frame(data=data)

    def part(self, choice: int, part: Part, tokens: Sequence[ChosenToken]) -> Iterable[Frame]:
        assert isinstance(part, TextPart), "a completion is text alone"
        yield Frame(data=self._piece(choice, part.text, tokens))

    def finish(self, choice: int, answer: Answer) -> Iterable[Frame]:
        last = llama_body(self._ask, choice, answer, model=self._model)
        yield Frame(data=self._wanted({**last, "content": "", "tokens": []}))

    def end(self, answers: Sequence[Answer]) -> Iterable[Frame]:
        del answers
        return ()

    def fail(self, error: MemfitError) -> Iterable[Frame]:
        yield Frame(data={"error": error_object(error)})

    def body(self, answers: Sequence[Answer]) -> Any:
        bodies = [
            self._wanted(llama_body(self._ask, index, answer, model=self._model))
            for index, answer in enumerate(answers)
        ]
        return bodies if self._lists or len(bodies) > 1 else bodies[0]

    def _piece(self, choice: int, text: str, tokens: Sequence[ChosenToken]) -> dict[str, Any]:
        self._written[choice] += len(tokens)
        piece: dict[str, Any] = {
            "index": choice,
            "content": text,
            "tokens": [one.token for one in tokens],
            "stop": False,
            "id_slot": choice,
            "tokens_predicted": self._written[choice],
            "tokens_evaluated": self._prompt_tokens,
        }
        if self._ask.logprobs is not None and tokens:
            after = self._ask.probabilities_after
            piece["completion_probabilities"] = llama_probabilities(tokens, after=after)
        return piece

    def _wanted(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self._fields:
            return body
        found = {}
        for name in self._fields:
            value: Any = body
            for part in name.split(_SEPARATOR):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                found[name] = value
        return found


def llama_body(ask: Ask, choice: int, answer: Answer, *, model: str) -> dict[str, Any]:
    """One choice, whole."""
    usage = answer.usage
    stop_type = "limit" if answer.reason == "length" else "word" if answer.stop is not None else "eos"
    body: dict[str, Any] = {
        "index": choice,
        "content": answer.text,
        "tokens": [one.token for one in answer.tokens] if ask.names_tokens else [],
        "id_slot": choice,
        "stop": True,
        "model": model,
        "tokens_predicted": usage.completion_tokens,
        "tokens_evaluated": usage.prompt_tokens,
        "generation_settings": generation_settings(ask),
        "prompt": answer.prompt or "",
        "has_new_line": "\n" in answer.text,
        "truncated": False,
        "stop_type": stop_type,
        "stopping_word": answer.stop or "",
        "tokens_cached": usage.prompt_tokens + usage.completion_tokens - 1,
        "timings": timings(answer),
    }
    if ask.logprobs is not None and not ask.stream:
        after = ask.probabilities_after
        body["completion_probabilities"] = llama_probabilities(answer.tokens, after=after)
    return body


def generation_settings(ask: Ask) -> dict[str, Any]:
    """The settings of a call, or of a server's defaults, in llama-server's words."""
    return {
        **_sampling_settings(ask.sampling),
        "n_probs": ask.logprobs or 0,
        "post_sampling_probs": ask.probabilities_after,
        "stream": ask.stream,
        "grammar": ask.grammar or "",
        "timings_per_token": ask.tells_timings,
        "reasoning_format": "auto" if ask.parses_reasoning else "none",
    }


def _sampling_settings(sampling: Sampling) -> dict[str, Any]:
    limit = -1 if sampling.max_tokens is None else sampling.max_tokens
    plain = {
        name: value
        for name, value in vars(sampling).items()
        if name not in ("max_tokens", "logit_bias", "stop", "dry_sequence_breakers")
    }
    return {
        **plain,
        "n_predict": limit,
        "max_tokens": limit,
        "stop": list(sampling.stop),
        "dry_sequence_breakers": list(sampling.dry_sequence_breakers),
        # null is their word for -inf
        "logit_bias": [
            {"token": token, "bias": bias if math.isfinite(bias) else None}
            for token, bias in sampling.logit_bias
        ],
    }
