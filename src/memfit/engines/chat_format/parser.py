"""Reads an answer as it is generated: text, reasoning and calls, by the model's format.

A call comes out when it is whole, since a client cannot be told that what it got was none. It knows no
engine and no API; it never raises for what a model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from memfit.engines.chat_format.calls import READERS, Call, CallReader
from memfit.engines.chat_format.flow import Flow
from memfit.engines.chat_format.form import CallSyntax, ChatFormat
from memfit.engines.chat_format.harmony import HarmonyReader
from memfit.engines.chat_format.parts import CallArguments, CallBegins, Part, ReasoningPart, TextPart
from memfit.engines.chat_format.tagged import read_tagged
from memfit.engines.chat_format.values import Tools
from memfit.engines.chat_format.window import Steps, Window
from memfit.errors import readable

__all__ = ["FormatParser"]

_CONTROL = ("<|", "[")  # how markers begin that are control tokens, which no text about them holds
_READERS = {**READERS, "tagged": read_tagged}
# What begins a call where there is no marker: the whole, and what may still become it.
_BARE = {
    "json": (
        re.compile(r'\[?\s*\{\s*"(name|type|function|parameters|arguments|id)"\s*:'),
        re.compile(r'\[?\s*(\{\s*("[a-z]*("\s*)?)?)?'),
    ),
    "pythonic": (re.compile(r"\[\s*[^\W\d][\w.\-]*\("), re.compile(r"\[\s*[\w.\-]*")),
}


class FormatParser:
    """Reads one answer. What it cannot read comes out as text, whole; `warning` then says what it was.

    `tools` are what the request offered, as OpenAI's API sends them. `in_reasoning`: the prompt ended inside
    reasoning. Without `parse_reasoning`, reasoning and its markers are text.
    """

    def __init__(
        self,
        form: ChatFormat,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        in_reasoning: bool = False,
        parse_calls: bool = True,
        parse_reasoning: bool = True,
    ) -> None:
        self.calls = 0  # so far
        self.warning: str | None = None
        self._form = form
        self._tools = Tools(tools)
        self._syntaxes = form.calls if parse_calls else ()
        self._openers = tuple(dict.fromkeys(one for syntax in self._syntaxes for one in _openers(syntax)))
        self._parse_reasoning = parse_reasoning
        self._parts: list[Part] = []
        self._window = Window()
        self._content = Flow(TextPart, self._parts)
        self._reasoning = Flow(ReasoningPart, self._parts) if parse_reasoning else self._content
        self._steps: Steps[None] | None = self._answer(in_reasoning)
        if any(syntax.kind == "harmony" for syntax in form.calls):
            self._steps = HarmonyReader(
                window=self._window,
                tools=self._tools,
                content=self._content,
                reasoning=self._reasoning,
                give=self._give,
                fail=self._fail,
                parse_calls=parse_calls,
            ).messages(in_reasoning)

    def feed(self, text: str) -> list[Part]:
        """The parts that are whole with this text."""
        self._window.add(text)
        return self._go_on()

    def finish(self) -> list[Part]:
        """What was held until now: there is no more text."""
        self._window.ended = True
        return self._go_on()

    def _go_on(self) -> list[Part]:
        if self._steps is not None:
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None
                if not self.calls:
                    self._content.rest()
        parts = self._parts[:]
        self._parts.clear()
        return parts

    # --- what is read where ---

    def _answer(self, in_reasoning: bool) -> Steps[None]:
        reasoning = self._form.reasoning
        marker = (yield from self._think("")) if in_reasoning and reasoning is not None else None
        while marker is not None or (marker := (yield from self._text())) is not None:
            if reasoning is not None and marker == reasoning.start:
                if self._content.spoke and not marker.startswith(_CONTROL):  # the answer talks about it
                    self._content.push(self._window.forget())
                    marker = None
                else:
                    marker = yield from self._think(marker)
                continue
            if marker in self._form.dropped:
                self._window.forget()
            else:
                yield from self._call(marker)
            marker = None

    def _all_text(self) -> Steps[None]:
        while True:
            if text := self._window.take(len(self._window.text)):
                self._parts.append(TextPart(text))
                self._window.forget()
            if self._window.ended:
                return
            yield

    def _text(self) -> Steps[str | None]:
        """Lets text out up to a marker, which stays held; None: there is no more text."""
        window = self._window
        starts = (self._form.reasoning.start,) if self._form.reasoning is not None else ()
        bare = tuple("[{") if any(syntax.bare for syntax in self._syntaxes) else ()
        markers = tuple(one for one in (*self._openers, *self._form.dropped, *starts, *bare) if one)
        if not markers:
            yield from self._all_text()
            return None
        while True:
            marker = yield from self._pass(self._content, markers)
            if marker is None or marker not in bare:
                return marker
            window.at -= 1
            window.forget()
            if self._content.line_begins and (syntax := (yield from self._bare())) is not None:
                yield from self._read(syntax)
            else:
                self._content.push(window.take(1))

    def _pass(self, flow: Flow, markers: tuple[str, ...]) -> Steps[str | None]:
        """Lets text out up to one of these markers, which stays held."""
        while True:
            text, marker, done = self._window.passing(markers)
            if text:
                flow.push(text)
            self._window.held[:] = [marker] if marker is not None else []
            if done:
                return marker
            yield

    def _bare(self) -> Steps[CallSyntax | None]:
        """The syntax of a call that begins here with no marker."""
        for syntax in self._syntaxes:
            if syntax.bare and (yield from self._window.looks(*_BARE[syntax.kind])):
                return syntax
        return None

    def _think(self, opener: str) -> Steps[str | None]:
        """Lets reasoning out, up to its end; or up to what ends it too, which is returned and stays held."""
        reasoning = self._form.reasoning
        assert reasoning is not None
        window = self._window
        window.forget()
        if self._parse_reasoning:
            self._content.restart()
            self._reasoning.restart()
            yield from window.space()
            if not opener:  # the prompt wrote it already; some models write it again
                yield from window.literal((reasoning.start,))
            window.forget()
        else:
            self._content.push(opener)
        closers = [one for one in reasoning.closed_by if one in (*self._openers, *self._form.dropped)]
        marker = yield from self._pass(self._reasoning, (reasoning.end, *closers))
        if not self._parse_reasoning and marker == reasoning.end:
            self._content.push(marker)
        elif marker is not None:
            self._content.restart()
        if marker == reasoning.end:
            window.forget()
            return None
        return marker

    # --- calls ---

    def _call(self, marker: str) -> Steps[None]:
        """Reads calls from the marker on that was just read."""
        window = self._window
        syntax = yield from self._syntax(marker)
        if syntax.start and marker != syntax.start:
            yield from window.space()
            if (yield from window.literal((syntax.start,))) is None:
                if (yield from window.literal((syntax.section_end,))) is None:
                    self._fail("a list of calls")
                window.forget()
                return
        yield from self._read(syntax)

    def _syntax(self, marker: str) -> Steps[CallSyntax]:
        """The syntax that goes on after this marker as the text does."""
        fitting = [syntax for syntax in self._syntaxes if marker in _openers(syntax)]
        if len(fitting) > 1:
            yield from self._window.space()
            letter = yield from self._window.next()
            if letter == "[" and (yield from self._window.looks(*_BARE["pythonic"])):
                wanted = {"pythonic"}
            else:
                wanted = {"json"} if letter and letter in "[{" else {"named", "tagged", "braced"}
            fitting = [syntax for syntax in fitting if syntax.kind in wanted] or fitting
        return fitting[0]

    def _read(self, syntax: CallSyntax) -> Steps[None]:
        window = self._window
        reader = CallReader(window, syntax, self._tools, self._give)
        while (yield from _READERS[syntax.kind](reader)):
            window.forget()
            yield from window.space()
            following = yield from window.literal((syntax.start, syntax.section_end))
            if following is None or following != syntax.start:
                self._content.push("" if following else window.forget())
                window.forget()
                return
        self._fail("a call")

    def _give(self, call: Call) -> None:
        self._window.forget()
        index = self.calls
        self.calls += 1
        self._parts += [CallBegins(index, call.id, call.name), CallArguments(index, call.arguments)]
        self._content.line_begins = True

    def _fail(self, what: str) -> None:
        """What was held is no call, but text."""
        text = self._window.forget()
        last = self._window.ended and self._window.at == len(self._window.text)
        if last and text.strip() in self._form.markers:  # cut right after a marker: it goes, as all do
            text = ""
        else:
            self.warning = (
                self.warning or f"the model wrote {what} that cannot be read: {readable(text, most=200)}"
            )
        self._content.push(text)


def _openers(syntax: CallSyntax) -> tuple[str, ...]:
    return tuple(one for one in (syntax.section_start, syntax.start) if one)
