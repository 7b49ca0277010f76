"""Requests of OpenAI's APIs: every refusal carries its field, what was there and what would do."""

from __future__ import annotations

from typing import Any

import pytest

from memfit.batch.lines import LineError, parse_line
from memfit.engines.requests import Sampling
from memfit.errors import UsageError
from memfit.openai.requests import read_request

_HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("fields", "field", "got", "needed"),
    [
        ({"max_tokens": 0}, "max_tokens", 0, "above 0"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", 0, "above 0"),
        ({"temperature": "1"}, "temperature", '"1"', "a number"),
        ({"top_k": 1.5}, "top_k", 1.5, "a whole number"),
        ({"seed": 10**5000}, "seed", "a number of more than 30 digits", "a whole number"),
        ({"top_p": float("inf")}, "top_p", None, None),
        ({"n": 2}, "n", "2", "1 or null"),
        ({"temprature": 1}, "temprature", None, None),
        ({"messages": [{"role": "tool"}]}, "messages[0].role", '"tool"', None),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, None, '"file"', "text"),
        ({"response_format": {"type": "xml"}}, "response_format.type", '"xml"', None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            *("response_format.json_schema.schema", None, None),
        ),
    ],
)
def test_a_refusal_carries_its_facts(
    fields: dict[str, Any], field: str | None, got: Any, needed: Any
) -> None:
    for prefix in ("body.", ""):
        with pytest.raises(UsageError) as caught:
            read_request({"messages": _HELLO, **fields}, "chat", number=1, defaults=Sampling(), prefix=prefix)
        error = caught.value
        assert error.field == prefix + (field or "messages[0].content[0].type")
        assert error.got == got
        assert needed is None or error.needed == needed


def test_a_line_keeps_them() -> None:
    with pytest.raises(LineError) as caught:
        parse_line(3, b'{"prompt": "a", "max_tokens": -1}', Sampling())
    assert (caught.value.field, caught.value.got, caught.value.needed) == ("max_tokens", -1, "above 0")


def test_a_prefix_is_in_every_message() -> None:
    with pytest.raises(UsageError, match=r"^body\.prompt: got null, needed a text$"):
        read_request({}, "completion", number=1, defaults=Sampling())
    with pytest.raises(UsageError, match=r"^messages: got null, needed a list of messages$"):
        read_request({}, "chat", number=1, defaults=Sampling(), prefix="")
