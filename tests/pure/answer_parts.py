"""An answer as parts and as a whole, for tests of what writes answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memfit.engines.chat_format import CallArguments, CallBegins, Part, ReasoningPart, TextPart
from memfit.engines.requests import ChosenToken, Speed
from memfit.openai.answers import Answer, AnswerWriter, Frame, Reason, ToolCall, Usage

USAGE = Usage(prompt_tokens=20, cached_tokens=5, completion_tokens=9, reasoning_tokens=3)
SPEED = Speed(prompt_tokens=15, prompt_seconds=0.5, generated_tokens=8, generation_seconds=2.0)
PARTS: tuple[Part, ...] = (
    *(ReasoningPart("The user"), ReasoningPart(" asks. "), TextPart("I look"), TextPart(" it up.")),
    CallBegins(0, "call_1", "weather"),
    *(CallArguments(0, '{"city": {"name":'), CallArguments(0, ' "Köln"}}')),
    *(CallBegins(1, "call_2", "time"), CallArguments(1, "{}")),
)


def answer_of(
    parts: Sequence[Part],
    reason: Reason = "stop",
    *,
    stop: str | None = None,
    tokens: tuple[ChosenToken, ...] = (),
) -> Answer:
    begun = [part for part in parts if isinstance(part, CallBegins)]
    calls = tuple(
        ToolCall(
            id=str(one.id),
            name=one.name,
            arguments="".join(
                part.text for part in parts if isinstance(part, CallArguments) and part.index == one.index
            ),
        )
        for one in begun
    )
    return Answer(
        text="".join(part.text for part in parts if isinstance(part, TextPart)),
        reasoning="".join(part.text for part in parts if isinstance(part, ReasoningPart)),
        calls=calls,
        reason=reason,
        stop=stop,
        usage=USAGE,
        speed=SPEED,
        tokens=tokens,
    )


def streamed(
    writer: AnswerWriter, parts: Sequence[Part], answer: Answer, tokens: Sequence[ChosenToken] = ()
) -> list[Frame]:
    """Frames of a whole stream; each part is made of the next token, where there are tokens."""
    frames = list(writer.begin(answer.usage.prompt_tokens))
    for index, part in enumerate(parts):
        frames += writer.part(0, part, tokens[index : index + 1])
    return [*frames, *writer.finish(0, answer), *writer.end([answer])]


def data_of(frame: Frame) -> dict[str, Any]:
    assert isinstance(frame.data, dict)
    return frame.data
