"""From tokens to an answer, by transformers' own `generate`: its samplers, its rules for where to end."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers.generation import BaseStreamer, StoppingCriteria, StoppingCriteriaList

from memfit.engines.channel import Aborted
from memfit.engines.requests import RANDOM_SEED, Completion, Sampling, Speed
from memfit.engines.text import TextSender
from memfit.engines.transformers.kv_cache import with_cache
from memfit.engines.transformers.model import CheckpointModel, explained

__all__ = ["Generation"]


class Generation(BaseStreamer, StoppingCriteria):
    """One answer on its way: hears each token, sends its text, and says when to end."""

    def __init__(
        self,
        model: CheckpointModel,
        sampling: Sampling,
        text: TextSender,
        *,
        room: int,
        is_wanted: Callable[[], bool],
    ) -> None:
        """At most `room` tokens, as long as it `is_wanted`, which is asked after each."""
        if sampling.seed != RANDOM_SEED:
            torch.manual_seed(sampling.seed)
        self._is_wanted, self._cancelled = is_wanted, False
        self._model, self._sampling, self._text = model, sampling, text
        self._limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        self._generated: list[int] = []
        self._hears_prompt = True
        self._prompt_done = 0.0
        self._decoder: Any = DecodeStream(skip_special_tokens=True)
        self._tokenizer = model.tokenizer.backend_tokenizer

    def run(self, tokens: Sequence[int]) -> Completion:
        """Errors as `CheckpointModel.decode`; a cancelled one ends with what there is."""
        model = self._model
        shared = model.keep(tokens)
        started = time.monotonic()
        ids = torch.tensor([tokens], device=model.model.device)
        settings = self._settings()
        try:
            with explained("the engine failed"):
                model.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=settings,
                    streamer=self,
                    stopping_criteria=StoppingCriteriaList([self]),
                    **with_cache(model.model, model.cache),
                )
        except Aborted:
            self._cancelled = True
        except BaseException:
            model.forget()
            raise
        ended = time.monotonic()
        self._cancelled |= model.is_aborted
        model.settle([*tokens, *self._generated])
        return self._completion(tokens, shared, started, ended)

    def _completion(self, tokens: Sequence[int], shared: int, started: float, ended: float) -> Completion:
        generated = self._generated
        closes = bool(generated) and generated[-1] in self._ends
        reason = "length"
        if self._cancelled:
            reason = "cancelled"
        elif closes or self._text.stopped:
            reason = "stop"
        prompt_done = self._prompt_done or ended
        speed = Speed(
            prompt_tokens=len(tokens) - shared,
            prompt_seconds=prompt_done - started,
            generated_tokens=max(0, len(generated) - 1),
            generation_seconds=ended - prompt_done if len(generated) > 1 else 0.0,
        )
        return Completion(
            text=self._text.finish(),
            finish_reason=reason,
            prompt_tokens=len(tokens),
            completion_tokens=len(generated) - closes,
            speed=speed,
        )

    def _settings(self) -> Any:
        """The model's own generation settings with what was asked for."""
        sampling = self._sampling
        settings = copy.deepcopy(self._model.generation_config)
        samples = sampling.temperature > 0
        settings.update(
            do_sample=samples,
            temperature=sampling.temperature if samples else None,
            top_k=(sampling.top_k or None) if samples else None,
            top_p=sampling.top_p if samples else None,
            min_p=(sampling.min_p or None) if samples else None,
            repetition_penalty=sampling.repeat_penalty,
            num_beams=1,
            max_new_tokens=self._limit,
            max_length=None,
            min_length=0,
            prefill_chunk_size=self._model.config.ubatch,
            use_cache=True,
            return_dict_in_generate=False,
            cache_implementation=None,
        )
        ends = settings.eos_token_id
        self._ends: set[int] = {ends} if isinstance(ends, int) else set(ends or ())
        if settings.pad_token_id is None:
            settings.pad_token_id = min(self._ends, default=0)
        return settings

    def put(self, value: torch.Tensor) -> None:
        """A streamer's: the prompt first, then token after token."""
        if self._hears_prompt:
            self._hears_prompt = False
            return
        if not self._generated:
            self._prompt_done = time.monotonic()
        token = int(value.reshape(-1)[0])
        self._generated.append(token)
        if token not in self._ends:
            piece = self._decoder.step(self._tokenizer, token)
            self._text.feed((piece or "").encode())

    def end(self) -> None:
        """A streamer's: there are no more."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion's."""
        ends = self._text.stopped or self._model.is_aborted or not self._is_wanted()
        return torch.full((input_ids.shape[0],), ends, dtype=torch.bool, device=input_ids.device)
