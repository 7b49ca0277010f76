"""From a prompt or messages to tokens, as llama.cpp's own tools do it."""

from __future__ import annotations

from collections.abc import Sequence

from memfit.engines.llamacpp.model import Model
from memfit.engines.llamacpp.template import render_chat
from memfit.engines.protocol import Message
from memfit.errors import UsageError

__all__ = ["prompt_tokens", "room_after"]


def prompt_tokens(model: Model, prompt: str | None, messages: Sequence[Message] | None) -> list[int]:
    """Tokens of a raw text, or of messages through the model's chat template.

    Raises:
        UsageError: there is no chat template, or no token.
        ModelError: the chat template failed or was stopped.
    """
    if prompt is not None:
        tokens = model.tokenize(prompt, add_special=True)
    else:
        template = model.chat_template()
        if template is None:
            raise UsageError("this model has no chat template; try --raw to continue a text")
        special = model.special_tokens()
        text = render_chat(template, messages or [], special)
        # Many templates write the beginning-of-text token themselves; two of them harm the answer.
        begins = bool(special["bos_token"]) and text.startswith(special["bos_token"])
        tokens = model.tokenize(text, add_special=not begins)
    if not tokens:
        raise UsageError("the prompt is empty; give at least one token")
    return tokens


def room_after(tokens: Sequence[int], context: int) -> int:
    """How many tokens a context has left for an answer.

    Raises:
        UsageError: none.
    """
    if len(tokens) >= context:
        raise UsageError(
            f"the prompt has {len(tokens)} tokens, the context {context}; "
            f"try --ctx {-(-(len(tokens) + 256) // 256) * 256} or a shorter prompt"
        )
    return context - len(tokens)
