"""What one call of any of the public APIs asks for, as a value: each API's reader makes it of its own body.

Knows no engine: `requests` makes what engines are asked of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from memfit.engines.requests import RANDOM_SEED, Message, Request, Sampling, TemplateOptions

__all__ = ["AUTO", "NONE", "REQUIRED", "Ask"]

AUTO, NONE, REQUIRED = "auto", "none", "required"  # of tool_choice, where it names no function


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One call. Its answers are `choices`: each prompt, or the messages, `n` times."""

    prompts: tuple[str | tuple[int | str, ...], ...] = ()  # each continued; (): the messages are answered
    messages: tuple[Message, ...] = ()
    template: TemplateOptions = field(default_factory=TemplateOptions)  # tools among it
    tool_choice: str = AUTO  # or NONE, REQUIRED, or `function`
    function: str | None = None  # the one that must be called
    parallel_calls: bool = True  # several calls in one answer
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | None = None  # JSON schema of the answer
    grammar: str | None = None  # GBNF of the answer
    n: int = 1
    logprobs: int | None = None  # likeliest tokens named with each token; None: no probabilities
    probabilities_after: bool = False  # of what sampling leaves over
    echo: bool = False  # the prompt is part of the answer
    generates: bool = True  # False: only the prompt is computed
    stream: bool = False
    usage_in_stream: bool = False
    parses_reasoning: bool = True  # reasoning comes apart from the text
    truncates: bool = False  # the oldest messages are left out where all are too long
    tells_progress: bool = False
    tells_timings: bool = False
    verbose: bool = False  # the prompt and all settings are part of the answer
    names_tokens: bool = False
    suffix: str | None = None  # what follows the text that is filled in
    model: str | None = None  # the name that was asked for
    warnings: tuple[str, ...] = ()  # what of the body was left out

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """Those that may be called."""
        return () if self.tool_choice == NONE else self.template.tools

    @property
    def offered(self) -> TemplateOptions:
        """What the template is given: of the tools those that may be called."""
        return replace(self.template, tools=self.tools)

    @property
    def choices(self) -> int:
        return self.n * (len(self.prompts) or 1)

    def requests(self) -> list[Request]:
        """For each choice what a model is asked. Where a seed is given, each has the next one."""
        shared: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                *("template", "schema", "grammar", "logprobs"),
                *("probabilities_after", "tells_progress", "names_tokens"),
            )
        }
        asked: list[dict[str, Any]] = [{"prompt": one} for one in self.prompts] or [
            {"messages": self.messages}
        ]
        return [
            Request(**one, **shared, sampling=self._seeded(index), tells_beginning=True)
            for one in asked
            for index in range(self.n)
        ]

    def _seeded(self, index: int) -> Sampling:
        seed = self.sampling.seed
        if self.sampling.is_random_seed:
            return self.sampling
        return replace(self.sampling, seed=(seed + index) % RANDOM_SEED)
