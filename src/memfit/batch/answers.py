"""A finished line → a line of the output or of the error file, as OpenAI's batches write them."""

from __future__ import annotations

import uuid
from typing import Any

from memfit.batch.lines import Line
from memfit.engines.requests import Completion
from memfit.errors import MemfitError
from memfit.openai.responses import error_object, response_body

__all__ = ["answer_line", "failure_line"]


def answer_line(line: Line, completion: Completion, *, model: str) -> dict[str, Any]:
    """The output's line for a whole answer."""
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": {
            "status_code": 200,
            "request_id": uuid.uuid4().hex,
            "body": response_body(line.form, completion, model=model),
        },
        "error": None,
    }


def failure_line(number: int, custom_id: str | None, error: MemfitError) -> dict[str, Any]:
    """The error file's line."""
    return {"line": number, "custom_id": custom_id, "error": error_object(error)}
