"""From a prompt to an answer, by transformers' own `generate`: its samplers, its rules for where to end."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from tokenizers.decoders import DecodeStream
from transformers.generation import BaseStreamer, StoppingCriteria, StoppingCriteriaList

from memfit.engines.messages import render_messages
from memfit.engines.protocol import Sampling
from memfit.engines.text import TextAssembler, TextSender
from memfit.engines.transformers.kv_cache import with_cache
from memfit.engines.transformers.model import Aborted, Model, explained
from memfit.errors import ModelError, UsageError, readable

__all__ = ["Generation", "prompt_tokens"]


def prompt_tokens(model: Model, prompt: str | None, messages: Sequence[dict[str, str]] | None) -> list[int]:
    """Tokens of a raw text, or of messages through the chat template, as transformers gives them.

    Raises:
        UsageError: there is no tokenizer or template, it refuses or loses messages, or there is no token.
        ModelError: the chat template failed.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UsageError(
            f"{model.config.folder} has no tokenizer, so texts cannot be read or written; "
            "memfit bench measures it without"
        )
    if prompt is not None:
        tokens = list(tokenizer(prompt)["input_ids"])
    elif not tokenizer.chat_template:
        raise UsageError("this model has no chat template; try --raw to continue a text")
    else:
        text = render_messages(lambda form: _render(tokenizer, form), messages or ())
        tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not tokens:
        raise UsageError("the prompt is empty; give at least one token")
    return tokens


def _render(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a stranger's program may fail in any way
        said = readable(str(error))
        if type(error) is TemplateError:  # what raise_exception raises
            raise UsageError(f"the model's chat template refuses these messages: {said}; try --raw") from None
        raise ModelError(f"the model's chat template failed: {said}; try --raw") from None


class Generation(BaseStreamer, StoppingCriteria):
    """One answer on its way: hears each token, sends its text, and says when to end."""

    def __init__(self, model: Model, sampling: Sampling, text: TextSender, *, room: int) -> None:
        self._model, self._sampling, self._text = model, sampling, text
        self._assembler = TextAssembler(sampling.stop)
        self._limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        self._generated: list[int] = []
        self._hears_prompt = True
        self._prompt_done = 0.0
        self._decoder: Any = DecodeStream(skip_special_tokens=True)
        self._tokenizer = model.tokenizer.backend_tokenizer

    def generate(self, tokens: Sequence[int]) -> None:
        """Errors as `Model.decode`; a cancelled one ends with what there is."""
        model = self._model
        self._prompt_tokens = len(tokens)
        self._shared = model.keep(tokens)
        self._started = time.monotonic()
        self._cancelled = False
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
        self._ended = time.monotonic()
        if self._cancelled or model.is_aborted:
            self._cancelled = True
            model.forget()
        else:
            held = [*tokens, *self._generated]
            model.cached = held[: model.cache.get_seq_length()]
        if not self._assembler.stopped:
            self._text.add(self._assembler.finish())
        self._text.flush()

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
        if settings.pad_token_id is None:
            settings.pad_token_id = min(self._ends_of(settings), default=0)
        self._ends = self._ends_of(settings)
        return settings

    @staticmethod
    def _ends_of(settings: Any) -> set[int]:
        ends = settings.eos_token_id
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)

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
            self._text.add(self._assembler.feed((piece or "").encode()))

    def end(self) -> None:
        """A streamer's: there are no more."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion's."""
        ends = self._assembler.stopped or self._model.is_aborted
        return torch.full((input_ids.shape[0],), ends, dtype=torch.bool, device=input_ids.device)

    def to_json(self) -> dict[str, Any]:
        """channel.py's answer to "complete"."""
        generated = self._generated
        ended = bool(generated) and generated[-1] in self._ends
        finish_reason = "length"
        if self._cancelled:
            finish_reason = "cancelled"
        elif ended or self._assembler.stopped:
            finish_reason = "stop"
        prompt_done = self._prompt_done or self._ended
        return {
            "text": self._text.whole,
            "finish_reason": finish_reason,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": len(generated) - ended,
            "processed_tokens": self._prompt_tokens - self._shared,
            "prompt_seconds": prompt_done - self._started,
            "decoded_tokens": max(0, len(generated) - 1),
            "generation_seconds": self._ended - prompt_done if len(generated) > 1 else 0.0,
        }
