"""How transformers answers requests where several sequences are planned: what the scheduler decides is
computed, chosen and sent, as llama.cpp's request loop does it.

In the worker. The scheduler's prefixes outlive every stream of requests.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from tokenizers.decoders import DecodeStream

from memfit.engines.allocator import trim
from memfit.engines.channel import Aborted, Channel
from memfit.engines.inbox import Inbox
from memfit.engines.requests import Completion, Request, Speed, Status, StreamTotals, TokenScore
from memfit.engines.results import (
    send_answer,
    send_beginning,
    send_failure,
    send_logits,
    send_prompt,
    send_scores,
)
from memfit.engines.scheduler import Job, Pass, Scheduler
from memfit.engines.text import TextSender
from memfit.engines.transformers.model import CheckpointModel
from memfit.engines.transformers.prompt import describe_prompt, prompt_tokens, require_room
from memfit.engines.transformers.sampling import Sampler
from memfit.errors import MemfitError

__all__ = ["SideBySideLoop"]

_STATUS_SECONDS = 0.5


@dataclass(eq=False, kw_only=True)
class _Running:
    """A request, beside what the scheduler knows of it."""

    request: Request
    job: Job
    sampler: Sampler
    text: TextSender
    decoder: Any = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))
    prompt_done_at: float = 0.0
    scores: list[TokenScore] = field(default_factory=list)

    def speed(self, now: float) -> Speed:
        """Of this request alone, whatever ran beside it."""
        job = self.job
        started, prompt_done = job.started_at or now, self.prompt_done_at or now
        decoded = max(0, len(job.generated) - 1)
        return Speed(
            prompt_tokens=job.computed,
            prompt_seconds=prompt_done - started,
            generated_tokens=decoded,
            generation_seconds=now - prompt_done if decoded else 0.0,
        )


class SideBySideLoop:
    """Answers the requests of one stream after the other, those of a stream side by side."""

    def __init__(self, model: CheckpointModel, channel: Channel) -> None:
        assert model.sequences is not None, "one sequence has a loop of its own"
        self._model, self._channel = model, channel
        config = model.config
        self._scheduler = Scheduler(
            model.sequences,
            cells=sys.maxsize,  # sequences have parts of their own
            sequences=config.parallel,
            ubatch=config.ubatch,
            outputs=max(config.parallel, config.outputs),
            mixes=bool(config.streamed_layers),
        )
        ends = model.generation_config.eos_token_id
        self._ends: set[int] = {ends} if isinstance(ends, int) else set(ends or ())
        self._inbox = Inbox(channel, lambda: model.is_aborted)
        self._running: dict[int, _Running] = {}  # by number; waiting ones too

    @torch.inference_mode()
    def run(self, expected: float) -> dict[str, Any]:
        """Answer requests until "end" has come and all are answered; returns what it came to.

        `expected` tokens come out of each, by the plan; 0: unknown.
        """
        self._scheduler.expect(expected)
        self._before = self._scheduler.prompt_tokens, self._scheduler.shared_tokens
        self._inbox.open()
        self._pass: Pass | None = None  # that is being computed
        self._told_at = self._decode_seconds = 0.0
        self._generated = 0
        self._model.threads.restart()
        cancelled = False
        try:
            while self._listen():
                if work := self._scheduler.next_pass():
                    rows = self._compute(work)
                    running = len(self._running)
                    with self._channel.together():
                        self._choose(work, rows)
                    del rows
                    if len(self._running) < running:
                        trim()
        except Aborted:
            cancelled = True
            self._cancel()
        except BaseException:
            self.forget()
            raise
        self._tell()
        return {"cancelled": cancelled, "totals": vars(self._totals())}

    def forget(self) -> None:
        """Empty the KV cache; what still runs is dropped."""
        for number in list(self._running):
            self._drop(number)
        self._inbox.waiting.clear()
        self._scheduler.begin_anew()
        self._model.forget()

    def _cancel(self) -> None:
        """Every request ends with what there is of it; what is computed stays in the cache."""
        if self._pass:
            self._scheduler.undo(self._pass)
        for one in list(self._running.values()):
            self._finish(one, "cancelled", len(one.job.generated))
        self._inbox.cancel()

    def _totals(self) -> StreamTotals:
        prompt, shared = self._before
        return StreamTotals(
            prompt_tokens=self._scheduler.prompt_tokens - prompt,
            shared_tokens=self._scheduler.shared_tokens - shared,
            generated_tokens=self._generated,
            seconds=self._inbox.seconds,
            decode_seconds=self._decode_seconds,
            passes=self._model.threads.passes,
            thread_passes=self._model.threads.thread_passes,
        )

    def _tell(self) -> None:
        """How busy it is."""
        scheduler = self._scheduler
        self._told_at = time.monotonic()
        waiting = scheduler.waiting + len(self._inbox.waiting)
        status = Status(waiting=waiting, running=scheduler.running, cells_in_use=scheduler.cells_in_use)
        self._inbox.tell(status, self._totals())

    # -- requests --------------------------------------------------------------------------------

    def _listen(self) -> bool:
        """Take what the parent has sent; False once nothing is left to do."""
        while True:
            while self._inbox.waiting:
                request, sends_text = self._inbox.waiting.popleft()
                try:
                    self._add(request, sends_text=sends_text)
                except MemfitError as error:
                    send_failure(self._channel, request.number, error)
            idle = self._scheduler.is_idle
            if idle and self._inbox.is_ending:
                return False
            if not self._inbox.take(self._drop, idle=idle):
                return True

    def _add(self, request: Request, *, sends_text: bool) -> None:
        model, sampling, score = self._model, request.sampling, request.score
        if request.describes:
            send_prompt(self._channel, request.number, describe_prompt(model, request))
            return
        tokens = prompt_tokens(model, request)
        if request.tells_beginning:
            send_beginning(self._channel, request.number, len(tokens), "")
        if score:
            del tokens[-1]  # what would follow it is not asked
        room = require_room(model, tokens, wants=0 if score else 1)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        job = Job(
            number=request.number,
            prompt=tokens,
            limit=0 if score else limit,
            scored_from=score.first - 1 if score else None,
        )
        self._running[request.number] = _Running(
            request=request,
            job=job,
            sampler=Sampler(sampling, model.model.device),
            text=TextSender(self._channel, request.number, sampling.stop, sends=sends_text),
        )
        self._scheduler.add(job)

    def _drop(self, number: int) -> None:
        if one := self._running.pop(number, None):
            self._scheduler.drop(one.job)

    # -- one pass --------------------------------------------------------------------------------

    def _compute(self, work: Pass) -> torch.Tensor:
        """Logits of the pass's outputs."""
        parts = [(sequence, len(list(group))) for sequence, group in groupby(work.sequences)]
        began = time.monotonic()
        self._pass = work
        rows = self._model.compute(
            work.tokens, work.positions, parts, outputs=[entry for entry, _ in work.outputs]
        )
        self._pass = None
        self._decode_seconds += time.monotonic() - began
        return rows

    def _choose(self, work: Pass, rows: torch.Tensor) -> None:
        """The next token of every sequence whose known ones are all computed."""
        if not work.outputs:
            return
        greedy = rows.argmax(dim=-1).tolist()
        for row, (_, job) in enumerate(work.outputs):
            one = self._running[job.number]
            if one.request.score:
                self._score(one, rows[row : row + 1])
                continue
            if not one.prompt_done_at:
                one.prompt_done_at = time.monotonic()
            if one.sampler.is_greedy:
                token = greedy[row]
            else:
                token = one.sampler.choose(rows[row].float(), [*job.prompt, *job.generated])
            self._take(one, token)
        if time.monotonic() - self._told_at >= _STATUS_SECONDS:
            self._tell()

    def _score(self, one: _Running, row: torch.Tensor) -> None:
        """One token more of a text to score."""
        from memfit.engines.scoring import score_rows

        score, tokens = one.request.score, one.request.prompt
        assert score and isinstance(tokens, tuple)
        position = score.first + len(one.scores)
        logits = row.float().cpu().numpy()
        if score.logits:
            send_logits(self._channel, one.job.number, position, logits)
        one.scores += score_rows(logits, (int(tokens[position]),), score.top)
        if position + 1 == len(tokens):
            self._scheduler.finish(one.job)
            del self._running[one.job.number]
            send_scores(self._channel, one.job.number, one.scores)

    def _take(self, one: _Running, token: int) -> None:
        """One token more of an answer."""
        job = one.job
        if token in self._ends:
            self._finish(one, "stop", len(job.generated))
            return
        self._generated += 1
        piece = one.decoder.step(self._model.tokenizer.backend_tokenizer, token)
        one.text.feed((piece or "").encode())
        if one.text.stopped:
            self._finish(one, "stop", len(job.generated) + 1)
            return
        self._scheduler.extend(job, (token,))
        if len(job.generated) >= job.limit:
            self._finish(one, "length", len(job.generated))

    def _finish(self, one: _Running, reason: str, tokens: int) -> None:
        job, ended = one.job, time.monotonic()
        text = one.text.finish()
        if reason == "cancelled":
            self._scheduler.drop(job)
        else:
            self._scheduler.finish(job)
        del self._running[job.number]
        completion = Completion(
            text=text,
            finish_reason=reason,
            prompt_tokens=len(job.prompt),
            completion_tokens=tokens,
            speed=one.speed(ended),
            stop=one.text.stop,
        )
        send_answer(self._channel, job.number, completion, self._totals())
