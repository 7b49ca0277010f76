"""From a prompt or messages to tokens, as llama.cpp's own tools do it."""

from __future__ import annotations

from collections.abc import Sequence

from memfit.engines.llamacpp.model import LlamaModel
from memfit.engines.llamacpp.template import render_chat
from memfit.engines.messages import render_messages, require_tokens
from memfit.engines.requests import Request
from memfit.errors import UsageError

__all__ = ["prompt_tokens", "room_after"]


def prompt_tokens(model: LlamaModel, request: Request) -> list[int]:
    """Tokens of a raw text, or of messages through the model's chat template.

    Raises:
        UsageError: there is no chat template, it refuses or loses messages, or there is no token, or one that
            the vocabulary has not.
        ModelError: the chat template failed or was stopped.
    """
    if isinstance(request.prompt, tuple):
        tokens = list(request.prompt)
        require_tokens(tokens, model.vocabulary_size)
    elif request.prompt is not None:
        tokens = model.tokenize(request.prompt, add_special=True)
    else:
        template = model.chat_template()
        if template is None:
            raise UsageError("this model has no chat template; try --raw to continue a text")
        special = model.special_tokens()
        text = render_messages(lambda form: render_chat(template, form, special), request.messages)
        # Many templates write the beginning-of-text token themselves; two of them harm the answer.
        begins = bool(special["bos_token"]) and text.startswith(special["bos_token"])
        tokens = model.tokenize(text, add_special=not begins)
    if not tokens:
        raise UsageError("the prompt is empty; give at least one token")
    return tokens


def room_after(model: LlamaModel, tokens: Sequence[int], *, wants: int = 1) -> int:
    """How many tokens a sequence has left for an answer.

    Raises:
        UsageError: fewer than it `wants`.
    """
    room = model.sequence_tokens
    parts = 1 if model.config.kv_unified else model.config.parallel
    if len(tokens) + wants > room:
        if model.config.parallel > 1 and room == model.trained_tokens:
            raise UsageError(f"the prompt has {len(tokens)} tokens, the model was trained for {room}")
        needed = -(-(len(tokens) + 256) // 256) * 256 * parts
        where = "the context" if parts == 1 else f"each of {parts} sequences"
        raise UsageError(
            f"the prompt has {len(tokens)} tokens, {where} {room}; try --ctx {needed} or a shorter prompt"
        )
    return room - len(tokens)
