"""Many requests at once, in the worker: what scheduler.py decides is decoded, sampled and sent here.

While it runs the parent sends "add", "drop" and at last "end"; answers go back as they are ready, each under
its request's number. Between two passes only what changed is touched: no text is made of tokens before it is
wanted.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memfit.engines.channel import Channel
from memfit.engines.llamacpp.grammar import Grammars
from memfit.engines.llamacpp.model import Aborted, Model
from memfit.engines.llamacpp.prompt import prompt_tokens, room_after
from memfit.engines.llamacpp.sampling import Sampler
from memfit.engines.protocol import Sampling
from memfit.engines.scheduler import Job, Pass, Scheduler
from memfit.engines.text import TextAssembler
from memfit.errors import EngineError, MemfitError
from memfit.processes.carried_errors import carry_error

__all__ = ["Batcher"]

_FLUSH_SECONDS = 0.05  # texts that are wanted as they come are sent this often
_LOOK_SECONDS = 0.1  # while nothing is asked, how often a cancellation is looked for


@dataclass(eq=False, kw_only=True)
class _Running:
    """A request, beside what the scheduler knows of it."""

    job: Job
    sampler: Sampler
    assembler: TextAssembler
    as_it_comes: bool  # text is wanted, or stop strings are looked for, token by token
    sends_text: bool
    text: list[str] = field(default_factory=list)
    sent: int = 0  # pieces of text
    begun: bool = False  # what its grammar demands at the beginning is known


class Batcher:
    """One run over requests, until "end" has come and all are answered."""

    def __init__(
        self, model: Model, api: Any, channel: Channel, grammars: Grammars, *, expected: float
    ) -> None:
        """`expected` tokens come out of a request, by the plan."""
        self._model = model
        self._api = api
        self._channel = channel
        self._scheduler = Scheduler(
            model.cache,
            # With parts of their own sequences cannot take cells from each other, and each job fits its own.
            cells=model.context_tokens if model.config.kv_unified else sys.maxsize,
            sequences=model.config.parallel,
            ubatch=model.ubatch,
            expected=expected,
            mixes=bool(model.config.streamed),
        )
        self._grammars = grammars
        self._held: deque[dict[str, Any]] = deque()  # asked for, and waiting for a grammar's memory
        self._batch = _Batch(api, model.ubatch)
        self._running: dict[int, _Running] = {}  # by number; waiting ones too
        self._ends: dict[int, bool] = {}  # token → whether it ends an answer
        self._ending = False
        self._started = time.monotonic()
        self._sent_at = 0.0
        self._generated = 0
        self._passes = 0
        self._decode_seconds = self._wait_seconds = 0.0

    def run(self) -> dict[str, Any]:
        """RequestResult all; returns what it came to."""
        cancelled = False
        try:
            while self._listen():
                work = self._scheduler.next_pass()
                if work:
                    self._decode(work)
                    self._choose(work)
        except Aborted:
            cancelled = True
        finally:
            for one in self._running.values():
                one.sampler.close()
            self._model.cache.clear()
        return {"cancelled": cancelled, **self._totals()}

    def _totals(self) -> dict[str, Any]:
        """protocol.BatchTotals."""
        return {
            "prompt_tokens": self._scheduler.prompt_tokens,
            "shared_tokens": self._scheduler.shared_tokens,
            "generated_tokens": self._generated,
            "seconds": time.monotonic() - self._started - self._wait_seconds,
            "decode_seconds": self._decode_seconds,
            "passes": self._passes,
        }

    # -- requests --------------------------------------------------------------------------------

    def _listen(self) -> bool:
        """Take what the parent has sent; False once nothing is left to do."""
        while True:
            self._admit()
            idle = self._scheduler.is_idle
            if idle and self._ending:
                return False
            began = time.monotonic()
            request = self._channel.next_request(_LOOK_SECONDS if idle else 0.0)
            if idle:
                self._wait_seconds += time.monotonic() - began
            if self._model.is_aborted:
                raise Aborted
            if request is None:
                return True
            do = request.pop("do")
            if do == "add":
                self._held.append(request)
            elif do == "drop":
                self._drop(request["number"])
            else:
                assert do == "end", f"{do} cannot be asked while a batch runs"
                self._ending = True

    def _admit(self) -> None:
        """Let requests in, in their order, as long as there is memory for what their grammars need."""
        while self._held and (self._held[0]["schema"] is None or self._grammars.has_room):
            self._add(**self._held.popleft())

    def _add(
        self,
        number: int,
        prompt: str | None,
        messages: list[dict[str, str]],
        sampling: dict[str, Any],
        schema: Mapping[str, Any] | None,
        sends_text: bool,
    ) -> None:
        model = self._model
        try:
            settings = Sampling(**{**sampling, "stop": tuple(sampling["stop"])})
            tokens = prompt_tokens(model, prompt, messages)
            room = room_after(model, tokens)
            grammar = None if schema is None else self._grammars.grammar(schema)
        except MemfitError as error:
            self._fail(number, error)
            return
        limit = room if settings.max_tokens is None else min(room, settings.max_tokens)
        job = Job(number=number, prompt=tokens, limit=limit)
        self._running[number] = _Running(
            job=job,
            sampler=Sampler(
                self._api, settings, model.vocabulary_size, grammar, alone=model.config.parallel == 1
            ),
            assembler=TextAssembler(settings.stop),
            as_it_comes=sends_text or bool(settings.stop),
            sends_text=sends_text,
        )
        self._scheduler.add(job)

    def _drop(self, number: int) -> None:
        self._held = deque(one for one in self._held if one["number"] != number)
        if one := self._running.pop(number, None):
            self._scheduler.drop(one.job)
            one.sampler.close()

    def _fail(self, number: int, error: MemfitError) -> None:
        self._channel.send("failed", number=number, **carry_error(error))

    # -- one pass --------------------------------------------------------------------------------

    def _decode(self, work: Pass) -> None:
        self._batch.fill(work)
        began = time.monotonic()
        self._model.decode_batch(self._batch.pointer)
        self._decode_seconds += time.monotonic() - began
        self._passes += 1

    def _choose(self, work: Pass) -> None:
        """The next token of every sequence whose known ones are all computed."""
        if not work.outputs:
            return
        jobs = [self._running[job.number] for _, job in work.outputs]
        # One sequence alone is not worth numpy's memory.
        many = self._model.config.parallel > 1 and any(one.sampler.is_greedy for one in jobs)
        greedy = self._model.largest_logits(len(jobs)) if many else []
        for row, ((entry, _), one) in enumerate(zip(work.outputs, jobs, strict=True)):
            try:
                self._continue(one, entry, greedy[row] if greedy and one.sampler.is_greedy else -1)
            except EngineError as error:  # the grammar's, or no number; others go on
                self._drop(one.job.number)
                self._fail(one.job.number, error)
        if self._model.cache.may_hold_nan:
            self._scheduler.begin_anew()
            self._model.cache.clear()
        self._send_texts()

    def _continue(self, one: _Running, entry: int, likeliest: int) -> None:
        """What follows in an answer: what its grammar demands, or what is chosen and what that demands."""
        tokens: list[int] = []
        if not one.begun:
            one.begun = True
            tokens = one.sampler.forced()
        if not tokens:
            if likeliest >= 0 and not one.sampler.has_grammar:
                token = likeliest
            else:
                token = self._model.choose(one.sampler, entry, likeliest)
            if self._is_end(token):
                self._finish(one, "stop", len(one.job.generated))
                return
            tokens = one.sampler.follow(token)
        for place, token in enumerate(tokens, start=1):
            if self._take(one, token, is_last=one.sampler.is_complete and place == len(tokens)):
                return

    def _is_end(self, token: int) -> bool:
        ends = self._ends.get(token)
        if ends is None:
            ends = self._ends[token] = self._model.is_end(token)
        return ends

    def _take(self, one: _Running, token: int, *, is_last: bool) -> bool:
        """One token more of an answer; True where it ends with it."""
        job = one.job
        self._generated += 1
        if one.as_it_comes:
            one.text.append(one.assembler.feed(self._model.piece(token)))
            if one.assembler.stopped:
                self._finish(one, "stop", len(job.generated) + 1)
                return True
        if is_last or len(job.generated) + 1 >= job.limit:
            job.generated.append(token)
            self._finish(one, "stop" if is_last else "length", len(job.generated))
            return True
        self._scheduler.extend(job, token)
        return False

    def _finish(self, one: _Running, reason: str, tokens: int) -> None:
        job = one.job
        if not one.as_it_comes:
            one.text.append(one.assembler.feed(b"".join(map(self._model.piece, job.generated))))
        if not one.assembler.stopped:
            one.text.append(one.assembler.finish())
        self._scheduler.finish(job)
        one.sampler.close()
        del self._running[job.number]
        self._channel.send(
            "answer",
            number=job.number,
            text="".join(one.text),
            finish_reason=reason,
            prompt_tokens=len(job.prompt),
            completion_tokens=tokens,
            totals=self._totals(),
        )

    def _send_texts(self) -> None:
        now = time.monotonic()
        if now - self._sent_at < _FLUSH_SECONDS:
            return
        self._sent_at = now
        for one in self._running.values():
            if one.sends_text and (text := "".join(one.text[one.sent :])):
                one.sent = len(one.text)
                self._channel.send("text", number=one.job.number, text=text)


class _Batch:
    """llama.cpp's llama_batch over arrays that are made once."""

    def __init__(self, api: Any, size: int) -> None:
        self._tokens: Any = (ctypes.c_int32 * size)()
        self._positions: Any = (ctypes.c_int32 * size)()
        self._counts = (ctypes.c_int32 * size)(*[1] * size)
        self._sequences: Any = (ctypes.c_int32 * size)()
        self._wanted = (ctypes.c_int8 * size)()
        start, width = ctypes.addressof(self._sequences), ctypes.sizeof(ctypes.c_int32)
        self._lists = (ctypes.c_void_p * size)(*range(start, start + width * size, width))
        self._size = size

        def at(array: Any, kind: Any) -> Any:
            return ctypes.cast(array, ctypes.POINTER(kind))

        self.pointer = api.llama_batch(
            n_tokens=0,
            token=at(self._tokens, ctypes.c_int32),
            pos=at(self._positions, ctypes.c_int32),
            n_seq_id=at(self._counts, ctypes.c_int32),
            seq_id=at(self._lists, ctypes.POINTER(ctypes.c_int32)),
            logits=at(self._wanted, ctypes.c_int8),
        )

    def fill(self, work: Pass) -> None:
        count = len(work.tokens)
        self.pointer.n_tokens = count
        self._tokens[:count] = work.tokens
        self._positions[:count] = work.positions
        self._sequences[:count] = work.sequences
        ctypes.memset(self._wanted, 0, self._size)
        for entry, _ in work.outputs:
            self._wanted[entry] = 1
