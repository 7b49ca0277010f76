"""A finished line → a line of the output or of the error file, as OpenAI's batches write them.

The shapes are those of the openai client's ChatCompletion and Completion.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from memfit.batch.lines import Line
from memfit.engines.requests import Completion
from memfit.errors import MemfitError, UsageError

__all__ = ["answer_line", "failure_line"]


def answer_line(line: Line, completion: Completion, *, model: str) -> dict[str, Any]:
    """The output's line for an answer that ended by itself ("stop") or at its limit ("length")."""
    assert completion.finish_reason in ("stop", "length"), completion.finish_reason
    chat = line.form == "chat"
    text: dict[str, Any] = {"text": completion.text}
    if chat:
        text = {"message": {"role": "assistant", "content": completion.text, "refusal": None}}
    body = {
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
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": {"status_code": 200, "request_id": uuid.uuid4().hex, "body": body},
        "error": None,
    }


def failure_line(number: int, custom_id: str | None, error: MemfitError) -> dict[str, Any]:
    """The error file's line; the types are OpenAI's."""
    kind = "invalid_request_error" if isinstance(error, UsageError) else "server_error"
    return {"line": number, "custom_id": custom_id, "error": {"message": str(error), "type": kind}}
