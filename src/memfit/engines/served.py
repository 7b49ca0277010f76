"""What those who serve a model have to know of it, as its worker found it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from memfit.engines.chat_format import ChatFormat
from memfit.engines.requests import Request
from memfit.errors import ContextExceededError

__all__ = ["Served"]

_SPACES = " \t\n\v\f\r"


@dataclass(frozen=True, kw_only=True)
class Served:
    """One loaded model. As it is by itself: nobody asked."""

    form: ChatFormat = field(default_factory=ChatFormat)  # how it writes reasoning and calls
    control_tokens: Mapping[str, int] = field(default_factory=dict)  # of the form's markers, by name
    sequence_tokens: int = 0  # that one sequence can have
    trained_tokens: int = 0
    template: str | None = None
    pooling: str | None = None  # where it embeds
    bos: str = ""
    eos: str = ""
    end_tokens: tuple[int, ...] = ()  # those that end an answer
    fill_tokens: tuple[int, ...] = ()  # before a prefix, before a suffix, before what is filled in
    longest_piece_bytes: int = 0  # of text that one token stands for at most; 0: any number

    @property
    def fills_in(self) -> bool:
        return bool(self.fill_tokens)

    def require_room(self, request: Request) -> None:
        """Refuse what is too long however well it tokenizes, before anybody reads it.

        Raises:
            ContextExceededError: it is.
        """
        if not self.longest_piece_bytes or not self.sequence_tokens:
            return
        prompt = (request.prompt,) if isinstance(request.prompt, str) else request.prompt or ()
        texts = [one for one in prompt if isinstance(one, str)]
        texts += [str(one["content"]) for one in request.messages]
        # Templates write something between two messages, so that no token holds parts of both.
        least = sum(-(-_letters(text) // self.longest_piece_bytes) for text in texts)
        if least > self.sequence_tokens:
            raise ContextExceededError(
                f"the prompt has at least {least} tokens, a sequence {self.sequence_tokens}; "
                "try a shorter prompt or a larger --ctx",
                got=least,
                needed=self.sequence_tokens,
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "form": self.form.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Served:
        if values is None:
            return cls()
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**{**given, "form": ChatFormat.from_json(values["form"])})


def _letters(text: str) -> int:
    """Without white space, which beside a control token may be no part of any token."""
    return len(text) - sum(map(text.count, _SPACES))
