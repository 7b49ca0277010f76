"""How buffers are filled on several threads. No engine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from fakes import make_tensor

from memfit.engines.llamacpp.filling import _Room, fill
from memfit.headers.model_spec import TensorSpec

_TENSORS = [(make_tensor(f"blk.{n}.ffn_up.weight", (64, 64), "Q8_0", 100 - n), n) for n in range(40)]


@contextlib.contextmanager
def _data(tensor: TensorSpec) -> Iterator[int]:
    yield 7000 + tensor.size_bytes


def _ggml(set_one: Callable[..., None]) -> SimpleNamespace:
    """Nodes' addresses are the tensors' numbers."""
    return SimpleNamespace(
        ggml_nbytes=lambda number: _TENSORS[number][0].size_bytes, ggml_backend_tensor_set=set_one
    )


def test_every_tensor_is_set_whole_and_once() -> None:
    calls: list[tuple[int, int, int, int]] = []
    came: list[int] = []
    ggml = _ggml(lambda *values: calls.append(values))
    fill(ggml, _TENSORS, _data, threads=3, came=came.append)
    assert sorted(calls) == [(n, 7000 + one.size_bytes, 0, one.size_bytes) for one, n in _TENSORS]
    assert sorted(came) == sorted(one.size_bytes for one, _ in _TENSORS)


def test_who_wants_no_more_gets_no_more() -> None:
    """As where the limit would be exceeded: the threads end with the tensor that they are at."""
    set_: list[int] = []

    def take(address: int, *_: int) -> None:
        set_.append(address)
        time.sleep(0.01)

    def came(_: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        fill(_ggml(take), _TENSORS, _data, threads=2, came=came)
    assert len(set_) < len(_TENSORS)


def test_an_error_of_reading_is_told() -> None:
    @contextlib.contextmanager
    def broken(_: TensorSpec) -> Iterator[int]:
        raise OSError("the disk")
        yield 0

    with pytest.raises(OSError, match="the disk"):
        fill(_ggml(print), _TENSORS, broken, threads=2, came=lambda _: None)


@pytest.mark.parametrize("sizes", [[100], [60, 40], [50, 20, 20, 10], [40, 30, 10, 10, 5, 3, 2], [9] * 30])
def test_no_more_is_held_than_in_the_end(sizes: list[int]) -> None:
    """Weights that came and what is held beside them, but for a single tensor that has nothing beside."""
    room, lock = _Room(sum(sizes)), threading.Lock()
    waiting, held, beside, over = list(reversed(sizes)), 0, [], []

    def work() -> None:
        nonlocal held
        while True:
            with lock:
                if not waiting:
                    return
                size = waiting.pop()
            with room.beside(size, size):
                with lock:
                    held += size
                    beside.append(size)
                    if len(beside) > 1:
                        over.append(held + sum(beside) - sum(sizes))
                time.sleep(0.002)  # so that others come meanwhile
                with lock:
                    beside.remove(size)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert held == sum(sizes) and not beside
    assert all(more <= 0 for more in over)
