"""An answer → the body that OpenAI's APIs give for it; an error → their error object.

The shapes are those of the openai client's ChatCompletion and Completion.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from memfit.engines.requests import Completion
from memfit.errors import MemfitError, UsageError
from memfit.openai.requests import Form

__all__ = ["error_object", "response_body"]


def response_body(form: Form, completion: Completion, *, model: str) -> dict[str, Any]:
    """Of an answer that ended by itself ("stop") or at its limit ("length")."""
    assert completion.finish_reason in ("stop", "length"), completion.finish_reason
    chat = form == "chat"
    text: dict[str, Any] = {"text": completion.text}
    if chat:
        text = {"message": {"role": "assistant", "content": completion.text, "refusal": None}}
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, **text, "logprobs": None, "finish_reason": completion.finish_reason}],
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        },
    }


def error_object(error: MemfitError) -> dict[str, Any]:
    """The types are OpenAI's."""
    kind = "invalid_request_error" if isinstance(error, UsageError) else "server_error"
    return {"message": str(error), "type": kind}
