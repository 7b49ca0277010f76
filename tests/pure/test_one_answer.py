"""One answer in llama.cpp's worker, without the library."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from memfit.engines.llamacpp import worker as worker_module
from memfit.engines.llamacpp.model import Aborted
from memfit.engines.llamacpp.worker import Worker


class _Library:
    """Its sampler functions, which do nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: SimpleNamespace()


class _Grammar:
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("failure", [Aborted(), RuntimeError()])
def test_a_grammar_is_given_back_when_its_prompt_ends_early(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = _Grammar()
    worker = Worker.__new__(Worker)
    worker.model = SimpleNamespace(vocabulary_size=2)  # type: ignore[assignment]
    worker.library = SimpleNamespace(api=_Library())  # type: ignore[assignment]
    worker.channel = SimpleNamespace(send=lambda *_, **__: None)  # type: ignore[assignment]

    def process(_: Sequence[int]) -> int:
        raise failure

    monkeypatch.setattr(worker, "_known_grammars", SimpleNamespace(grammar=lambda _: grammar), raising=False)
    monkeypatch.setattr(worker, "_process_prompt", process)
    monkeypatch.setattr(worker, "_forget", lambda: None)
    monkeypatch.setattr(worker_module, "prompt_tokens", lambda *_: [1])
    monkeypatch.setattr(worker_module, "room_after", lambda *_: 8)
    if isinstance(failure, Aborted):
        answer = worker.complete("a", None, {"stop": []}, {"type": "integer"})
        assert answer["finish_reason"] == "cancelled"
    else:
        with pytest.raises(RuntimeError):
            worker.complete("a", None, {"stop": []}, {"type": "integer"})
    assert grammar.is_closed
