"""Fills the engine's buffers with weights, on all threads: the engine rewrites them on a single one."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from typing import Any

from memfit.engines.llamacpp.buffers import packed
from memfit.engines.llamacpp.forms import widen
from memfit.engines.llamacpp.graph import WEIGHTS_USAGE, Node
from memfit.engines.llamacpp.library import Library
from memfit.errors import EngineError
from memfit.hardware.direct_file import DirectFile, StreamError
from memfit.hardware.disk_speed import own_memory
from memfit.headers.model_spec import TensorSpec
from memfit.memory.estimate import LlamaConfig
from memfit.memory.streaming import SENT_BYTES, stretches, widened_bytes

__all__ = ["address_of", "allocate", "fill", "fill_buffers", "send"]


def allocate(
    ggml: Any, kind: int, tensors: Sequence[tuple[TensorSpec, int]]
) -> Iterator[tuple[TensorSpec, int]]:
    """Give tensors, by their nodes' addresses, room in buffers of a type: each buffer when its first is
    taken. The buffers belong to the process from here on.

    Raises:
        EngineError: there is no room, or a tensor is not taken.
    """
    for size, inside in packed(ggml, kind, tensors):
        buffer = ggml.ggml_backend_buft_alloc_buffer(kind, size)
        if not buffer:
            where = ggml.ggml_backend_buft_name(kind).decode()
            raise EngineError(f"{where} has no room for {size} bytes of weights")
        ggml.ggml_backend_buffer_set_usage(buffer, WEIGHTS_USAGE)
        base = ggml.ggml_backend_buffer_get_base(buffer)
        for tensor, address, start in inside:
            node = Node.from_address(address)
            node.buffer = node.data = node.extra = None  # of the one without memory that it had
            if ggml.ggml_backend_tensor_alloc(buffer, address, base + start) != 0:
                raise EngineError(f"{ggml.ggml_backend_buft_name(kind).decode()} does not take {tensor.name}")
            yield tensor, address


def fill(
    ggml: Any,
    tensors: Sequence[tuple[TensorSpec, int]],
    data: Callable[[TensorSpec], AbstractContextManager[int]],
    *,
    threads: int,
    came: Callable[[int], None],
) -> None:
    """Set whole tensors that have room, which is when a buffer rewrites them, in order. `data` gives the
    address of a tensor's bytes; `came` is told how many are done, and may raise."""

    def set_one(tensor: TensorSpec, address: int) -> int:
        size: int = ggml.ggml_nbytes(address)
        with data(tensor) as source:
            ggml.ggml_backend_tensor_set(address, source, 0, size)
        return size

    with ThreadPoolExecutor(threads) as pool:
        try:
            for done in as_completed([pool.submit(set_one, *one) for one in tensors]):
                came(done.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Room:
    """Keeps what threads hold beside the weights from ever being more than the weights that are still to
    come, so that loading takes no more than what is loaded."""

    def __init__(self, whole_bytes: int) -> None:
        self._to_come, self._beside = whole_bytes, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def beside(self, size_bytes: int, more_bytes: int) -> Iterator[None]:
        """A tensor comes, and takes `more_bytes` meanwhile. Waits until there is room, or nothing beside."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._beside or self._beside + more_bytes + size_bytes <= self._to_come
            )
            self._beside += more_bytes
            self._to_come -= size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._beside -= more_bytes
                self._changed.notify_all()


def fill_buffers(
    library: Library,
    config: LlamaConfig,
    tensors: Sequence[TensorSpec],
    used: Sequence[tuple[str, int]],
    files: Sequence[DirectFile],
    *,
    on_progress: Callable[[float], None],
) -> None:
    """All of a model that the engine has built without memory (`no_alloc`). Every tensor gets the buffer that
    the engine would give it, so that the oracle's bytes hold; the order and the number of threads are ours.

    `tensors` are the file's, `used` name and address of the engine's, `files` the config's; `on_progress` may
    raise.

    Raises:
        EngineError: the files cannot be read, or there is no room.
    """
    ggml = library.ggml_base
    known = {one.name: one for one in tensors}
    by_kind: dict[int, list[tuple[TensorSpec, int]]] = {}
    for name, address in used:
        kind = ggml.ggml_backend_buffer_get_type(Node.from_address(address).buffer)
        by_kind.setdefault(kind, []).append((known[name], address))
    plain: list[tuple[TensorSpec, int]] = []
    rewritten: list[tuple[TensorSpec, int]] = []
    sizes: dict[TensorSpec, int] = {}  # of the latter, rewritten
    for kind, group in by_kind.items():
        if ggml.ggml_backend_buft_is_host(kind):
            plain += allocate(ggml, kind, group)
        else:
            rewritten += allocate(ggml, kind, group)
            sizes |= {one: ggml.ggml_backend_buft_get_alloc_size(kind, address) for one, address in group}
    # The largest first: what is held beside a tensor while it is read is small when most is there.
    rewritten.sort(key=lambda one: -sizes[one[0]])
    room = _Room(sum(sizes.values()) + sum(tensor.size_bytes for tensor, _ in plain))
    widened = set(config.widened)

    def data(tensor: TensorSpec) -> AbstractContextManager[int]:
        return _data(files[tensor.file_index], tensor, room, sizes[tensor], widens=tensor.name in widened)

    whole, done = sum(ggml.ggml_nbytes(address) for _, address in (*rewritten, *plain)) or 1, 0

    def came(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        on_progress(done / whole)

    on_progress(0.0)
    try:
        fill(ggml, rewritten, data, threads=config.threads, came=came)
        memory = own_memory(SENT_BYTES)
        for tensor, address in plain:
            send(ggml, files[tensor.file_index], tensor, address, memory)
            came(tensor.size_bytes)
    except StreamError as error:
        raise EngineError(str(error)) from None


@contextlib.contextmanager
def _data(
    file: DirectFile, tensor: TensorSpec, room: _Room, rewritten_bytes: int, *, widens: bool
) -> Iterator[int]:
    """The address of a tensor's bytes as they are to be rewritten, in memory for as long as that takes."""
    (part,) = stretches([tensor])
    shift, wide_bytes = tensor.offset_bytes - part.start_bytes, widened_bytes(tensor) if widens else 0
    with room.beside(rewritten_bytes, part.size_bytes + wide_bytes), own_memory(part.size_bytes) as memory:
        file.read(memoryview(memory), part.start_bytes)
        if not widens:
            yield address_of(memory) + shift
            return
        with own_memory(wide_bytes) as wide, memoryview(memory) as read:
            widen(tensor.type, read[shift : shift + tensor.size_bytes], memoryview(wide))
            yield address_of(wide)


def send(ggml: Any, file: DirectFile, tensor: TensorSpec, address: int, memory: mmap.mmap) -> None:
    """Read a tensor into its buffer, through so much memory at once; never for one that is rewritten.

    Raises:
        StreamError: the file cannot be read.
    """
    (part,) = stretches([tensor])
    view, base, most = memoryview(memory), address_of(memory), len(memory)
    shift = tensor.offset_bytes - part.start_bytes
    for start in range(0, part.size_bytes, most):
        piece = view[: min(most, part.size_bytes - start)]
        file.read(piece, part.start_bytes + start)
        first, last = max(start, shift), min(start + len(piece), shift + tensor.size_bytes)
        ggml.ggml_backend_tensor_set(address, base + first - start, first - shift, last - first)


def address_of(memory: mmap.mmap) -> int:
    """Of its first byte."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
