"""What is known of a loaded model: it goes to JSON and back, and refuses what can never fit."""

from __future__ import annotations

import json

import pytest

from memfit.engines.requests import Request
from memfit.engines.served import Served
from memfit.errors import ContextExceededError

_SERVED = Served(sequence_tokens=10, longest_piece_bytes=4, end_tokens=(1, 2), bos="<s>")


def test_it_goes_to_json_and_back() -> None:
    assert Served.from_json(json.loads(json.dumps(_SERVED.to_json()))) == _SERVED
    assert Served.from_json(None) == Served()


@pytest.mark.parametrize(
    "request_",
    [
        Request(prompt="x" * 40),
        Request(prompt=("x" * 20, 5, "x" * 20)),
        Request(prompt=tuple(range(100))),
        Request(prompt="x" * 40 + " \n\t\r" * 100),
        Request(messages=({"role": "user", "content": "x" * 20}, {"role": "user", "content": "x" * 20})),
    ],
)
def test_what_may_fit_is_left_to_the_engine(request_: Request) -> None:
    _SERVED.require_room(request_)


@pytest.mark.parametrize(
    "request_",
    [
        Request(prompt="x" * 41),
        Request(prompt=("x" * 20, 5, "x" * 21)),
        Request(messages=({"role": "user", "content": "x" * 20}, {"role": "user", "content": "x" * 21})),
        Request(messages=({"role": "user", "content": "x"},) * 11),
    ],
)
def test_what_cannot_fit_is_refused_with_both_numbers(request_: Request) -> None:
    with pytest.raises(ContextExceededError, match="at least 11 tokens, a sequence 10") as raised:
        _SERVED.require_room(request_)
    assert (raised.value.got, raised.value.needed) == (11, 10)
    Served(sequence_tokens=10).require_room(request_)
    Served(longest_piece_bytes=4).require_room(request_)
