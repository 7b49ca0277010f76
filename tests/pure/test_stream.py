"""The ring that streamed tensors pass through, on real files: order, errors, ends. No engine."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from memfit.engines.llamacpp.buffers import packed
from memfit.engines.stream import Ring
from memfit.hardware.direct_file import DirectFile, StreamError
from memfit.headers.model_spec import TensorSpec
from memfit.memory.page_cache import cached_bytes, drop_cached
from memfit.memory.streaming import (
    PAGE_BYTES,
    Stretch,
    is_read_by_row,
    ring_bytes,
    streamed_bytes,
    stretches,
)
from memfit.units import MIB

_SIZES = (5000, 100, 40_000, 4096, 12_288, 1, 70_000, 8192)


def _tensor(name: str, offset: int, size: int, file_index: int = 0) -> TensorSpec:
    return TensorSpec(
        name=name, shape=(size,), type="I8", size_bytes=size, offset_bytes=offset, file_index=file_index
    )


@pytest.fixture
def model(tmp_path: Path) -> tuple[list[Path], list[TensorSpec], list[bytes]]:
    """Two files of noise, and tensors of all sizes in them."""
    paths, tensors, contents = [], [], []
    for index in range(2):
        content = random.Random(index).randbytes(1000 + sum(_SIZES))
        paths.append(tmp_path / f"{index}.gguf")
        paths[-1].write_bytes(content)
        contents.append(content)
        offset = 1000
        for number, size in enumerate(_SIZES):
            tensors.append(_tensor(f"{index}.{number}", offset, size, index))
            offset += size
    return paths, tensors, contents


@contextmanager
def _ring(
    paths: list[Path], parts: list[Stretch[TensorSpec]], size: int | None = None, *, cancelled: bool = False
) -> Iterator[Ring]:
    size = size or max(part.size_bytes for part in parts)
    ring = Ring([DirectFile(path) for path in paths], [(part,) for part in parts], size, lambda: cancelled)
    try:
        yield ring
    finally:
        ring.close()
        assert not any(thread.name == "memfit-stream" for thread in threading.enumerate())


def _bytes_at(address: int, part: Stretch[TensorSpec]) -> bytes:
    (tensor,) = part.tensors
    return ctypes.string_at(address + tensor.offset_bytes - part.start_bytes, tensor.size_bytes)


@pytest.mark.parametrize("slots", [1, 1.3, 2, 3, 20])
def test_every_pass_gives_every_tensor(
    model: tuple[list[Path], list[TensorSpec], list[bytes]], slots: float
) -> None:
    paths, tensors, contents = model
    parts = [part for one in tensors for part in stretches([one])]
    size = int(slots * max(part.size_bytes for part in parts)) // PAGE_BYTES * PAGE_BYTES
    with _ring(paths, parts, size) as ring:
        for _ in range(4):
            for index, part in enumerate(parts):
                (one,) = part.tensors
                expected = contents[one.file_index][one.offset_bytes :][: one.size_bytes]
                assert _bytes_at(ring.take(index), part) == expected
                ring.give_back()


def test_whoever_asks_out_of_order_gets_it_too(
    model: tuple[list[Path], list[TensorSpec], list[bytes]],
) -> None:
    paths, tensors, contents = model
    parts = [part for one in tensors for part in stretches([one])]
    choice = random.Random(5)
    with _ring(paths, parts, 3 * 81_920) as ring:
        for _ in range(200):
            index = choice.randrange(len(parts))
            (one,) = parts[index].tensors
            expected = contents[one.file_index][one.offset_bytes :][: one.size_bytes]
            assert _bytes_at(ring.take(index), parts[index]) == expected
            if choice.random() < 0.9:  # an aborted pass gives nothing back
                ring.give_back()


@pytest.mark.parametrize("harm", ["shorter", "touched"])
def test_a_file_that_changes_is_an_error(
    model: tuple[list[Path], list[TensorSpec], list[bytes]], harm: str
) -> None:
    paths, tensors, _ = model
    parts = [part for one in tensors for part in stretches([one])]
    with _ring(paths, parts) as ring:
        ring.take(0)
        if harm == "shorter":
            os.truncate(paths[0], 3000)
        else:
            os.utime(paths[0], (1, 1))
        ring.give_back()
        with pytest.raises(StreamError, match=r"was changed|became shorter"):
            for index in range(1, len(parts)):
                ring.take(index)
                ring.give_back()
        with pytest.raises(StreamError):  # and stays one
            ring.take(0)


def test_a_failing_disk_is_an_error(
    model: tuple[list[Path], list[TensorSpec], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    paths, tensors, _ = model
    parts = [part for one in tensors for part in stretches([one])]
    monkeypatch.setattr(os, "preadv", fail)
    with (
        _ring(paths, parts) as ring,
        pytest.raises(StreamError, match=r"cannot read .*0\.gguf: Input/output"),
    ):
        ring.take(0)


def test_where_a_filesystem_refuses_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read passes through the page cache, and does not stay."""
    monkeypatch.setattr("memfit.hardware.direct_file.go_direct", lambda _: False)
    content = random.Random(3).randbytes(1 << 20) * 32
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    drop_cached([path])
    before = cached_bytes([path])
    if before is None or before > len(content) // 100:
        pytest.skip("this kernel or this filesystem does not say what is cached")
    tensors = [_tensor(f"{start}", start, 3 << 20) for start in range(100, len(content) - (3 << 20), 3 << 20)]
    parts = [part for one in tensors for part in stretches([one])]
    with _ring([path], parts, 3 * parts[0].size_bytes) as ring:
        for index, tensor in enumerate(tensors):
            assert _bytes_at(ring.take(index), parts[index]) == content[tensor.offset_bytes :][: 3 << 20]
            ring.give_back()
    held = cached_bytes([path])
    assert held is not None and held <= MIB


def test_a_cancelled_wait_ends(model: tuple[list[Path], list[TensorSpec], list[bytes]]) -> None:
    paths, tensors, _ = model
    parts = [part for one in tensors for part in stretches([one])]
    with _ring(paths, parts, cancelled=True) as ring:
        for index in range(len(parts)):
            ring.take(index)  # whether it is there or not
            ring.give_back()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        DirectFile(tmp_path / "none.gguf")


def test_pages_by_hand() -> None:
    first, second = _tensor("a", 100, 4000), _tensor("b", 4100, 50)  # pages 0 to 1, and 1
    far, other = (
        _tensor("c", 20_000, 4096),
        _tensor("d", 0, 1, file_index=1),
    )  # pages 4 to 5; another file's 0
    assert [part.size_bytes for part in stretches([far, other, second, first])] == [8192, 8192, 4096]
    assert [one.name for one in stretches([second, first])[0].tensors] == ["a", "b"]
    assert streamed_bytes([first, second, far, other], ["b", "c"]) == 4096 + 8192
    assert (
        ring_bytes([first, second, far, other]) == 8192 + 4096 + 8192 + 4096
    )  # all of them are less than three
    assert ring_bytes([far] * 5) == 3 * 8192
    assert ring_bytes([]) == 0


def test_a_token_table_is_read_by_row_unless_it_is_the_output_too() -> None:
    table, output = _tensor("token_embd.weight", 0, 10), _tensor("output.weight", 10, 10)
    assert is_read_by_row(table, [table, output]) and not is_read_by_row(output, [table, output])
    assert not is_read_by_row(table, [table])


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1 << 40, [(352, [0, 128, 256, 320])]),
        (256, [(228, [0, 128]), (96, [0, 64])]),
        (128, [(100, [0]), (100, [0]), (96, [0, 64])]),
        (50, [(100, [0]), (100, [0]), (40, [0]), (32, [0])]),  # the device itself must refuse
    ],
)
def test_buffers_are_as_few_as_a_device_allows(most: int, expected: list[tuple[int, list[int]]]) -> None:
    """Each tensor begins at a multiple of 64."""
    ggml = SimpleNamespace(
        ggml_backend_buft_get_alignment=lambda _: 64,
        ggml_backend_buft_get_max_size=lambda _: most,
        ggml_backend_buft_get_alloc_size=lambda _, address: address,
    )
    tensors = [(_tensor("", 0, size), size) for size in (100, 100, 40, 32)]
    found = list(packed(ggml, 0, tensors))
    assert [(size, [start for _, _, start in inside]) for size, inside in found] == expected
    assert [one for _, inside in found for *one, _ in inside] == [list(one) for one in tensors]
