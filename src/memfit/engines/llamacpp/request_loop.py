"""The one way in which llama.cpp answers requests: what the scheduler decides is decoded, sampled and sent.

In the worker. One loop belongs to one loaded model, and with it the scheduler, whose prefixes outlive every
stream of requests. Between two passes only what changed is touched: no text is made of tokens before it is
wanted.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from memfit.engines.channel import Aborted, Channel
from memfit.engines.inbox import Inbox
from memfit.engines.llamacpp.decode_batch import DecodeBatch
from memfit.engines.llamacpp.grammar import Grammars
from memfit.engines.llamacpp.model import LlamaModel
from memfit.engines.llamacpp.prompt import describe_prompt, read_prompt, room_after
from memfit.engines.llamacpp.sampling import Candidates, Sampler
from memfit.engines.requests import (
    ChosenToken,
    Completion,
    Progress,
    Request,
    Speed,
    Status,
    StreamTotals,
    TokenScore,
)
from memfit.engines.results import (
    send_answer,
    send_beginning,
    send_failure,
    send_logits,
    send_progress,
    send_prompt,
    send_scores,
)
from memfit.engines.scheduler import Job, Pass, Scheduler
from memfit.engines.text import TextSender
from memfit.errors import EngineError, MemfitError

__all__ = ["RequestLoop"]

_STATUS_SECONDS = 0.5
_TINY = 1e-38  # a probability that is 0 in float32
_ENDING = 200  # characters of a prompt's end that are told


@dataclass(eq=False, kw_only=True)
class _Running:
    """A request, beside what the scheduler knows of it."""

    request: Request
    job: Job
    sampler: Sampler
    text: TextSender
    as_it_comes: bool  # text is wanted, or stop strings are looked for, token by token
    prompt_done_at: float = 0.0
    progress: Progress | None = None  # that was told last
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


class RequestLoop:
    """Answers the requests of one stream after the other, those of a stream side by side."""

    def __init__(self, model: LlamaModel, api: Any, channel: Channel, grammars: Grammars) -> None:
        self._model, self._api, self._channel, self._grammars = model, api, channel, grammars
        config = model.config
        self._scheduler = Scheduler(
            model.cache,
            # With parts of their own sequences cannot take cells from each other, and each job fits its own.
            cells=model.context_tokens if config.kv_unified else sys.maxsize,
            sequences=config.parallel,
            ubatch=model.ubatch,
            outputs=max(config.parallel, config.outputs),
            mixes=bool(config.streamed),
        )
        self.longest = model.sequence_tokens  # that a prompt and its answer may have
        self._batch = DecodeBatch(api, model.ubatch)
        self._candidates = Candidates(model.vocabulary_size)
        self._is_end = functools.cache(model.is_end)
        self._inbox = Inbox(channel, lambda: model.is_aborted)
        self._running: dict[int, _Running] = {}  # by number; waiting ones too

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
                    self._decode(work)
                    with self._channel.together():
                        self._choose(work)
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
        self._model.cache.clear()

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
        self._inbox.tell(
            Status(
                waiting=waiting,
                running=scheduler.running,
                cells_in_use=scheduler.cells_in_use,
                generated_tokens=self._generated,
            )
        )

    # -- requests --------------------------------------------------------------------------------

    def _listen(self) -> bool:
        """Take what the parent has sent; False once nothing is left to do."""
        while True:
            self._admit()
            idle = self._scheduler.is_idle
            if idle and self._inbox.is_ending:
                return False
            if not self._inbox.take(self._drop, idle=idle):
                return True

    def _admit(self) -> None:
        """Let requests in, in their order, as long as there is memory for what their grammars need."""
        waiting = self._inbox.waiting
        while waiting and (not waiting[0][0].is_constrained or self._grammars.has_room):
            request, sends_text = waiting.popleft()
            try:
                if request.describes:
                    send_prompt(self._channel, request.number, describe_prompt(self._model, request))
                else:
                    self._add(request, sends_text=sends_text)
            except MemfitError as error:
                send_failure(self._channel, request.number, error)

    def _add(self, request: Request, *, sends_text: bool) -> None:
        model, sampling, score = self._model, request.sampling, request.score
        prompt = read_prompt(model, request)
        tokens = prompt.tokens
        if score:
            del tokens[-1]  # what would follow it is not asked
        room = room_after(model, tokens, wants=0 if score else 1)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        job = Job(
            number=request.number,
            prompt=tokens,
            limit=0 if score else limit,
            scored_from=score.first - 1 if score else None,
        )
        sampler = self._sampler(request)
        names_tokens = request.names_tokens or request.logprobs is not None
        self._running[request.number] = _Running(
            request=request,
            job=job,
            sampler=sampler,
            text=TextSender(
                self._channel,
                request.number,
                sampling.stop,
                sends=sends_text or names_tokens,
                one_by_one=names_tokens,
            ),
            as_it_comes=sends_text or names_tokens or bool(sampling.stop),
        )
        if request.tells_beginning:
            ending = (prompt.rendered or "")[-_ENDING:]
            send_beginning(self._channel, request.number, len(prompt.tokens), ending)
        self._scheduler.add(job)

    def _sampler(self, request: Request) -> Sampler:
        source = request.grammar if request.schema is None else request.schema
        grammar = None if source is None else self._grammars.grammar(source)
        try:
            return Sampler(
                self._api,
                self._model,
                request.sampling,
                grammar,
                alone=self._model.config.parallel == 1,
                candidates=self._candidates,
                keeps=request.logprobs if request.probabilities_after else None,
            )
        except BaseException:
            if grammar:
                grammar.close()
            raise

    def _drop(self, number: int) -> None:
        if one := self._running.pop(number, None):
            self._scheduler.drop(one.job)
            one.sampler.close()

    # -- one pass --------------------------------------------------------------------------------

    def _decode(self, work: Pass) -> None:
        self._tell_progress(work, before=True)
        self._batch.fill(work)
        began = time.monotonic()
        self._pass = work
        self._model.decode_batch(self._batch.pointer)
        self._pass = None
        self._decode_seconds += time.monotonic() - began
        self._tell_progress(work, before=False)

    def _tell_progress(self, work: Pass, *, before: bool) -> None:
        """Of prompts, before their first pass and after each one."""
        for slot, cached in work.slots:
            one = self._running[slot.job.number] if slot.job else None
            if one is None or not one.request.tells_progress or one.prompt_done_at:
                continue
            if before and one.progress:
                continue
            total = len(one.job.prompt)
            one.progress = Progress(
                number=one.job.number,
                total=total,
                shared=one.progress.shared if one.progress else cached,
                processed=cached if before else min(total, slot.cached),
                seconds=0.0 if before else time.monotonic() - (one.job.started_at or 0.0),
            )
            send_progress(self._channel, one.progress)

    def _choose(self, work: Pass) -> None:
        """The next token of every sequence whose known ones are all computed."""
        if not work.outputs:
            return
        rows = [self._running[job.number] for _, job in work.outputs]
        # One sequence alone is not worth numpy's memory.
        many = self._model.config.parallel > 1 and any(one.sampler.is_greedy for one in rows)
        greedy = self._model.largest_logits(len(rows)) if many else []
        for row, ((entry, job), one) in enumerate(zip(work.outputs, rows, strict=True)):
            if job.number not in self._running:  # it failed at an earlier row
                continue
            try:
                if one.request.score:
                    self._score(one, row)
                else:
                    self._continue(one, entry, greedy[row] if greedy and one.sampler.is_greedy else -1)
            except EngineError as error:  # the grammar's, or no number; others go on
                self._drop(job.number)
                send_failure(self._channel, job.number, error)
        if self._model.cache.may_hold_nan:
            self._scheduler.begin_anew()
            self._model.cache.clear()
        if time.monotonic() - self._told_at >= _STATUS_SECONDS:
            self._tell()

    def _score(self, one: _Running, row: int) -> None:
        """One token more of a text to score, from the logits in this row."""
        from memfit.engines.scoring import score_rows

        score, tokens = one.request.score, one.request.prompt
        assert score and isinstance(tokens, tuple)
        position = score.first + len(one.scores)
        logits = self._model.logits(row, 1)
        if score.logits:
            send_logits(self._channel, one.job.number, position, logits)
        one.scores += score_rows(logits, (int(tokens[position]),), score.top)
        if position + 1 == len(tokens):
            self._scheduler.finish(one.job)
            self._close(one)
            send_scores(self._channel, one.job.number, one.scores)

    def _continue(self, one: _Running, entry: int, likeliest: int) -> None:
        """What follows in an answer: what its grammar demands, or what is chosen and what that demands."""
        tokens: list[int] = []
        if not one.prompt_done_at:
            one.prompt_done_at = time.monotonic()
            tokens = one.sampler.forced() if one.request.logprobs is None else []
        if not tokens:
            if likeliest >= 0 and not one.sampler.has_grammar:
                token = likeliest
            else:
                token = self._model.choose(one.sampler, entry, likeliest)
            if self._is_end(token):
                self._finish(one, "stop", len(one.job.generated))
                return
            # Those that must follow have probabilities only once those before them are computed.
            tokens = one.sampler.follow(token, forced=one.request.logprobs is None)
        for place, token in enumerate(tokens, start=1):
            is_last = one.sampler.is_complete and place == len(tokens)
            if self._take(one, token, self._named(one, entry, token), is_last=is_last):
                return

    def _named(self, one: _Running, entry: int, token: int) -> ChosenToken | None:
        """A token as it is told, where it is."""
        request = one.request
        if request.logprobs is None:
            return ChosenToken(token=token, piece=self._piece(one, token)) if request.names_tokens else None
        from memfit.engines.scoring import score_rows

        if request.probabilities_after:
            logprob = math.log(max(one.sampler.chance, _TINY))
            top = [(each, math.log(chance)) for each, chance in one.sampler.left]
        else:
            score = score_rows(self._model.entry_logits(entry), (token,), request.logprobs)[0]
            logprob, top = score.logprob, list(score.top)
        return ChosenToken(
            token=token,
            piece=self._piece(one, token),
            logprob=logprob,
            top=tuple((each, self._model.piece(each, special=True), one) for each, one in top),
        )

    def _piece(self, one: _Running, token: int) -> bytes:
        shows = one.request.shows_markers and token in self._model.shown_tokens
        return self._model.piece(token, special=shows)

    def _take(self, one: _Running, token: int, named: ChosenToken | None, *, is_last: bool) -> bool:
        """One token more of an answer; True where it ends with it."""
        job = one.job
        self._generated += 1
        if one.as_it_comes:
            one.text.feed(self._piece(one, token), named)
            if one.text.stopped:
                self._finish(one, "stop", len(job.generated) + 1)
                return True
        self._scheduler.extend(job, (token,))
        if is_last or len(job.generated) >= job.limit:
            self._finish(one, "stop" if is_last else "length", len(job.generated))
            return True
        return False

    def _finish(self, one: _Running, reason: str, tokens: int) -> None:
        job, ended = one.job, time.monotonic()
        if not one.as_it_comes:
            one.text.feed(b"".join(self._piece(one, token) for token in job.generated))
        text = one.text.finish()
        if reason == "cancelled":
            self._scheduler.drop(job)
        else:
            self._scheduler.finish(job)
        self._close(one)
        completion = Completion(
            text=text,
            finish_reason=reason,
            prompt_tokens=len(job.prompt),
            completion_tokens=tokens,
            speed=one.speed(ended),
            stop=one.text.stop,
        )
        send_answer(self._channel, job.number, completion, self._totals())

    def _close(self, one: _Running) -> None:
        one.sampler.close()
        del self._running[one.job.number]
