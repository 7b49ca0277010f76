"""From a prompt or messages to tokens, as llama.cpp's own tools do it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from memfit.engines.chat_format import spell_tools
from memfit.engines.llamacpp.model import LlamaModel
from memfit.engines.llamacpp.template import render_chat
from memfit.engines.messages import render_messages, require_tokens
from memfit.engines.requests import PromptText, Request
from memfit.errors import ContextExceededError, UsageError

__all__ = ["Prompt", "describe_prompt", "prompt_tokens", "read_prompt", "render_prompt", "room_after"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt's tokens, and its text where a chat template made it."""

    tokens: list[int]
    rendered: str | None = None


def prompt_tokens(model: LlamaModel, request: Request) -> list[int]:
    """The tokens of `read_prompt`."""
    return read_prompt(model, request).tokens


def read_prompt(model: LlamaModel, request: Request) -> Prompt:
    """Tokens of a raw text, or of messages through the model's chat template.

    Raises:
        UsageError: there is no chat template, it refuses or loses messages, or there is no token, or one that
            the vocabulary has not.
        ModelError: the chat template failed or was stopped.
    """
    rendered = None
    if request.prompt is not None:
        pieces = (request.prompt,) if isinstance(request.prompt, str) else request.prompt
        tokens = _mixed(model, pieces, adds_special=request.adds_special)
    else:
        rendered = render_prompt(model, request)
        # Many templates write the beginning-of-text token themselves; two of them harm the answer.
        begins = rendered.startswith(model.special_tokens()["bos_token"] or "\0")
        tokens = model.tokenize(rendered, add_special=not begins)
    if not tokens and not request.describes:
        raise UsageError("the prompt is empty; give at least one token")
    return Prompt(tokens=tokens, rendered=rendered)


def render_prompt(model: LlamaModel, request: Request) -> str:
    """Messages through the chat template. Errors as `read_prompt`."""
    template = model.chat_template()
    if template is None:
        raise UsageError("this model has no chat template; try --raw to continue a text")
    special, options = model.special_tokens(), request.template
    messages: Sequence[Mapping[str, Any]] = request.messages
    tools = options.tools
    if model.form and not model.form.has_tools:
        messages, tools = spell_tools(messages, tools), ()

    def render(form: Sequence[Mapping[str, Any]], **values: Any) -> str:
        return render_chat(
            template,
            form,
            special,
            tools=tools or None,
            add_generation_prompt=options.adds_generation_prompt or options.continues,
            options={**_told(tools), **options.values, **values},
        )

    if not options.continues:
        text = render_messages(render, messages)
        if options.values.get("enable_thinking") is False and model.form:
            thinks = render_messages(partial(render, enable_thinking=True), messages)
            text += model.form.unthinking(text, heeded=thinks != text)
        return text
    *before, last = messages
    return render_messages(render, before) + str(last["content"])


def _told(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What llama.cpp tells templates beside, of Llama 3 and of firefunction: the day, and tools as a text."""
    now = datetime.now()
    shown = json.dumps(list(tools), ensure_ascii=False, indent=2) if tools else ""
    return {"date_string": f"{now:%d %b %Y}", "datetime": f"{now:%b %d %Y}", "functions": shown}


def describe_prompt(model: LlamaModel, request: Request) -> PromptText:
    """What the model would read. Errors as `read_prompt`."""
    prompt = read_prompt(model, request)
    pieces = tuple(model.piece(token, special=True) for token in prompt.tokens)
    text = prompt.rendered
    if text is None:
        text = b"".join(pieces).decode("utf-8", errors="replace")
    return PromptText(text=text, tokens=tuple(prompt.tokens), pieces=pieces)


def room_after(model: LlamaModel, tokens: Sequence[int], *, wants: int = 1) -> int:
    """How many tokens a sequence has left for an answer.

    Raises:
        ContextExceededError: fewer than it `wants`.
    """
    room = model.sequence_tokens
    parts = 1 if model.config.kv_unified else model.config.parallel
    if len(tokens) + wants > room:
        if model.config.parallel > 1 and room == model.trained_tokens:
            raise ContextExceededError(
                f"the prompt has {len(tokens)} tokens, the model was trained for {room}",
                got=len(tokens),
                needed=room,
            )
        needed = -(-(len(tokens) + 256) // 256) * 256 * parts
        where = "the context" if parts == 1 else f"each of {parts} sequences"
        raise ContextExceededError(
            f"the prompt has {len(tokens)} tokens, {where} {room}; try --ctx {needed} or a shorter prompt",
            got=len(tokens),
            needed=room,
        )
    return room - len(tokens)


def _mixed(model: LlamaModel, pieces: Sequence[int | str], *, adds_special: bool | None) -> list[int]:
    """Tokens of texts and tokens in turn; what begins a text comes only before a text that is first."""
    require_tokens([one for one in pieces if isinstance(one, int)], model.vocabulary_size)
    tokens: list[int] = []
    for index, piece in enumerate(pieces):
        if isinstance(piece, int):
            tokens.append(piece)
        else:
            tokens += model.tokenize(piece, add_special=index == 0 and adds_special is not False)
    return tokens
