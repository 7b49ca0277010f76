"""One choice of a call while it is written: text from the model becomes parts, and at its end an answer."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memfit.engines.chat_format import (
    CallBegins,
    ChatFormat,
    FormatParser,
    Part,
    ReasoningPart,
    TextPart,
)
from memfit.engines.requests import ChosenToken, Completion
from memfit.openai.answers import Answer, Reason, ToolCall, Usage
from memfit.openai.ask import Ask

__all__ = ["Choice", "Piece"]

_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTHS = {"mistral": 9}  # its template refuses others


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part, and the tokens that it was made of where these are named."""

    part: Part
    tokens: tuple[ChosenToken, ...] = ()


class Choice:
    """Fed with what the model writes. Knows no API and no model."""

    def __init__(self, ask: Ask, form: ChatFormat) -> None:
        self._ask, self._form = ask, form
        self._parser: FormatParser | None = None  # None: a completion, which is text alone
        self._pending: list[ChosenToken] = []  # whose text is still held back
        self._tokens: list[ChosenToken] = []
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[CallBegins] = []
        self._arguments: list[list[str]] = []
        self.echoed: Piece | None = None  # the prompt, where it is part of the answer
        self.prompt_text: str | None = None  # as the model read it, where that is told

    @property
    def warning(self) -> str | None:
        """What could not be read, and came out as text."""
        return self._parser.warning if self._parser else None

    @property
    def thoughts(self) -> str:
        return "".join(self._thoughts)

    def begin(self, ending: str) -> None:
        """The prompt is read; `ending` is its end, of a chat."""
        if not self._ask.prompts:
            self._parser = FormatParser(
                self._form,
                tools=self._ask.tools,
                in_reasoning=self._form.opens_reasoning(ending),
                parse_calls=bool(self._ask.tools),
                parse_reasoning=self._ask.parses_reasoning,
            )

    def echo(self) -> list[Piece]:
        return [] if self.echoed is None else [self._kept(self.echoed)]

    def feed(self, text: str, tokens: Sequence[ChosenToken] = ()) -> list[Piece]:
        if not self._ask.generates:
            return []
        self._pending += tokens
        parts: Sequence[Part] = self._parser.feed(text) if self._parser else [TextPart(text=text)]
        return self._pieces(parts)

    def finish(self) -> list[Piece]:
        """What was held back."""
        return self._pieces(self._parser.finish() if self._parser else ())

    def answer(self, completion: Completion, *, reasoning_tokens: int) -> Answer:
        """All of it, once it is finished."""
        reason: Reason = "length" if completion.finish_reason == "length" else "stop"
        calls = tuple(
            ToolCall(id=call.id or "", name=call.name, arguments="".join(arguments) or "{}")
            for call, arguments in zip(self._calls, self._arguments, strict=True)
        )
        generates = self._ask.generates
        return Answer(
            text="".join(self._texts),
            reason="tool_calls" if calls and reason == "stop" else reason,
            reasoning=self.thoughts,
            calls=calls,
            stop=completion.stop,
            tokens=tuple(self._tokens),
            usage=Usage(
                prompt_tokens=completion.prompt_tokens,
                cached_tokens=completion.prompt_tokens - completion.speed.prompt_tokens,
                completion_tokens=completion.completion_tokens if generates else 0,
                reasoning_tokens=reasoning_tokens,
            ),
            speed=completion.speed,
            prompt=self.prompt_text,
        )

    def _pieces(self, parts: Sequence[Part]) -> list[Piece]:
        pieces = []
        for part in parts:
            tokens = tuple(self._pending) if isinstance(part, TextPart) else ()
            if isinstance(part, TextPart | ReasoningPart):
                self._pending = []  # those of thoughts are not told, as they are none of the text's
            pieces.append(self._kept(Piece(part=part, tokens=tokens)))
        return pieces

    def _kept(self, piece: Piece) -> Piece:
        part = piece.part
        if isinstance(part, TextPart):
            self._texts.append(part.text)
            self._tokens += piece.tokens
        elif isinstance(part, ReasoningPart):
            self._thoughts.append(part.text)
        elif isinstance(part, CallBegins):
            piece = replace(piece, part=replace(part, id=part.id or self._new_id()))
            assert isinstance(piece.part, CallBegins)
            self._calls.append(piece.part)
            self._arguments.append([])
        else:
            self._arguments[part.index].append(part.text)
        return piece

    def _new_id(self) -> str:
        length = _ID_LENGTHS.get(self._form.family)
        if length:
            return "".join(secrets.choice(_ID_LETTERS) for _ in range(length))
        return f"call_{secrets.token_hex(12)}"
