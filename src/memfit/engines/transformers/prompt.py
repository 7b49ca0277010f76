"""From a prompt or messages to tokens, as transformers gives them. In the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from memfit.engines.messages import render_messages, require_tokens
from memfit.engines.requests import PromptText, Request
from memfit.engines.transformers.model import CheckpointModel
from memfit.errors import ContextExceededError, ModelError, UsageError, readable

__all__ = ["describe_prompt", "prompt_tokens", "require_room", "tokens_of"]


def prompt_tokens(model: CheckpointModel, request: Request) -> list[int]:
    """Tokens of a raw text, or of messages through the chat template.

    Raises:
        UsageError: there is no tokenizer or template, it refuses or loses messages, or there is no token, or
            one that the vocabulary has not.
        ModelError: the chat template failed.
    """
    if isinstance(request.prompt, tuple):
        tokens = [one for one in request.prompt if isinstance(one, int)]
        if len(tokens) < len(request.prompt):
            raise UsageError("texts among tokens are read by llama.cpp only; take a GGUF file")
        require_tokens(tokens, model.vocabulary_size)
    else:
        if model.tokenizer is None:
            raise UsageError(
                f"{model.config.folder} has no tokenizer, so texts cannot be read or written; "
                "memfit bench measures it without"
            )
        tokens = tokens_of(model.tokenizer, request)
    if not tokens:
        raise UsageError("the prompt is empty; give at least one token")
    return tokens


def tokens_of(tokenizer: Any, request: Request) -> list[int]:
    """Of texts. Errors as `prompt_tokens`."""
    if request.prompt is not None:
        return [int(token) for token in tokenizer(request.prompt)["input_ids"]]
    if not tokenizer.chat_template:
        raise UsageError("this model has no chat template; try --raw to continue a text")
    text = render_messages(lambda form: _render(tokenizer, form), request.messages)
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def describe_prompt(model: CheckpointModel, request: Request) -> PromptText:
    """What the model would read. Errors as `prompt_tokens`."""
    tokens = prompt_tokens(model, request)
    decode = model.tokenizer.decode if model.tokenizer else lambda _: ""
    pieces = tuple(decode([token]).encode() for token in tokens)
    return PromptText(
        text=b"".join(pieces).decode("utf-8", errors="replace"), tokens=tuple(tokens), pieces=pieces
    )


def require_room(model: CheckpointModel, tokens: Sequence[int], *, wants: int = 1) -> int:
    """How many tokens the context has left for an answer.

    Raises:
        ContextExceededError: fewer than it `wants`.
    """
    room = model.config.sequence_tokens - len(tokens)
    if room < wants:
        raise ContextExceededError(
            f"the prompt has {len(tokens)} tokens, the context {model.config.sequence_tokens}; "
            f"try --ctx {(len(tokens) + 256) * model.config.parallel} or a shorter prompt",
            got=len(tokens),
            needed=model.config.sequence_tokens,
        )
    return room


def _render(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a stranger's program may fail in any way
        said = readable(str(error))
        if type(error) is TemplateError:  # what raise_exception raises
            raise UsageError(f"the model's chat template refuses these messages: {said}; try --raw") from None
        raise ModelError(f"the model's chat template failed: {said}; try --raw") from None
