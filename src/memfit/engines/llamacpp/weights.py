"""Weights in memory of our own: pinned ones read once, as they are or dequantized, and streamed ones from the
ring.

The engine has built the model without memory (`no_alloc`), as the oracle does; here every tensor in RAM gets
its data, read past the page cache. A streamed matrix gets its address just before it is multiplied with, in
the scheduler's evaluation callback. The token table is read by row, so it stays a mapping of the file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from memfit.engines.llamacpp.buffers import form_of
from memfit.engines.llamacpp.c_functions import TypeTraits
from memfit.engines.llamacpp.filling import address_of, allocate, send
from memfit.engines.llamacpp.forms import retype
from memfit.engines.llamacpp.giving import Giving
from memfit.engines.llamacpp.graph import Node, set_data
from memfit.engines.llamacpp.layouts import Layouts, rewritten_forms
from memfit.engines.llamacpp.library import Library
from memfit.engines.stream import Ring
from memfit.errors import EngineError
from memfit.hardware.direct_file import DirectFile, StreamError
from memfit.hardware.disk_speed import own_memory
from memfit.headers.model_spec import TensorSpec
from memfit.memory.estimate import LlamaConfig
from memfit.memory.locked import lock_memory
from memfit.memory.streaming import DEQUANTIZED, PAGE_BYTES, SENT_BYTES, Stretch, is_read_by_row, stretches

__all__ = ["OwnWeights"]

_SOURCE = Node.src.offset
_PIECE_BYTES = 256 << 10  # dequantized at once
_PROGRESS_BYTES = 64 << 20  # read between two looks at the limit


class OwnWeights:
    def __init__(
        self,
        config: LlamaConfig,
        tensors: Sequence[TensorSpec],
        used: Sequence[tuple[str, int]],
        files: Sequence[DirectFile],
        *,
        library: Library,
        abort: Callable[[], None],
        is_aborted: Callable[[], bool],
        on_progress: Callable[[float], None],
    ) -> None:
        """Read what is pinned, and send devices what is theirs. `tensors` are the file's, `used` name and
        address of the engine's, `files` the config's; `on_progress` may raise.

        Raises:
            EngineError: the files cannot be read, or a device has no room.
        """
        self.error: StreamError | EngineError | None = None
        self.locked_bytes = 0  # of pinned weights, where there is swap
        self._abort, self._is_aborted = abort, is_aborted
        # Called with a streamed tensor and the address of its data, before anything computes with it.
        self.on_given: Callable[[int, int], None] | None = None
        self._ring_bytes = config.ring_bytes
        self._ring: Ring | None = None
        self._kept: list[mmap.mmap] = []  # the engine's tensors point into them
        self._table: mmap.mmap | None = None
        self._table_file = self._table_start = -1
        self._files = files
        self._streamed: dict[int, Stretch[TensorSpec]] = {}  # by tensor
        self._giving: Giving | None = None  # None: no tensor is streamed
        self._indices: dict[int, int] = {}  # tensor → its number in the order of computation
        self._shifts: list[int] = []  # where in its pages each tensor begins
        self._library, self._ggml = library, library.ggml_base
        self._types = library.type_numbers
        self._read(config, tensors, used, on_progress)
        if self._streamed:
            names = {address: part.tensors[0].name for address, part in self._streamed.items()}
            largest = max(part.size_bytes for part in self._streamed.values())
            self._giving = Giving(names, largest, has_devices=bool(config.devices))

    def _read(
        self,
        config: LlamaConfig,
        tensors: Sequence[TensorSpec],
        used: Sequence[tuple[str, int]],
        on_progress: Callable[[float], None],
    ) -> None:
        """Give every tensor its data, in the way that the config has for it; streamed ones come later."""
        streamed, dequantized = set(config.streamed), set(config.dequantized)
        known = {one.name: one for one in tensors}
        pinned, sent, larger = [], [], []
        for name, address in used:
            tensor = known[name]
            if not self._ggml.ggml_backend_buffer_is_host(Node.from_address(address).buffer):
                sent.append((tensor, address))
            elif name in dequantized:
                larger.append((tensor, address))
            elif name in streamed:
                (self._streamed[address],) = stretches([tensor])
            elif is_read_by_row(tensor, tensors):
                self._map(tensor, address, config.paths[tensor.file_index])
            else:
                pinned.append((tensor, address))
        whole = sum(one.size_bytes for one, _ in (*sent, *pinned, *larger)) or 1
        twice = {*config.twofold, *config.prompt_dequantized}
        whole += sum(one.size_bytes for one, _ in pinned if one.name in twice)
        done = 0

        def came(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            on_progress(min(1.0, done / whole))

        came(0)
        try:
            self._send(sent, came)
            self._pin(dict(pinned), came)
            for tensor, address in larger:
                self._dequantize(tensor, address, came)
            self._hold_both(config, pinned, came)
        except StreamError as error:
            raise EngineError(str(error)) from None

    def _hold_both(
        self, config: LlamaConfig, pinned: Sequence[tuple[TensorSpec, int]], came: Callable[[int], None]
    ) -> None:
        """Of pinned tensors: make their other form, too."""
        twofold = {tensor: address for tensor, address in pinned if tensor.name in config.twofold}
        plain = {address: form_of(address) for _, address in pinned}
        few = rewritten_forms(self._library, twofold, config.threads, came)
        many = {address: plain[address] for address in few}
        for tensor, address in pinned:
            if tensor.name in config.prompt_dequantized:
                retype(self._library, address, DEQUANTIZED)
                self._dequantize(tensor, address, came)
                few[address], many[address] = plain[address], form_of(address)
        self.layouts = Layouts(few, many) if few else None

    def require_turns(self, nodes: Sequence[Node]) -> None:
        """Raises EngineError where a graph would read a streamed tensor before its turn."""
        assert self._giving is not None
        self._giving.require_turns(nodes)

    def start(self, nodes: Sequence[Node]) -> None:
        """Begin to read ahead, in the order of a graph's nodes. Errors as in `Giving.order`."""
        assert self._giving is not None
        order = self._giving.order(nodes)
        self._indices = {address: index for index, address in enumerate(order)}
        parts = [self._streamed[address] for address in order]
        self._shifts = [part.tensors[0].offset_bytes - part.start_bytes for part in parts]
        largest = max((part.size_bytes for part in parts), default=0)
        if largest > self._ring_bytes:
            raise EngineError(f"a streamed tensor takes {largest} bytes, the ring has {self._ring_bytes}")
        self._ring = Ring(self._files, [(part,) for part in parts], self._ring_bytes, self._is_aborted)

    def drop_rows(self) -> None:
        """Give back the rows of the token table that were read: they stay in the page cache otherwise."""
        if self._table is not None:
            self._table.madvise(mmap.MADV_DONTNEED)
            os.posix_fadvise(self._table_file, self._table_start, len(self._table), os.POSIX_FADV_DONTNEED)

    def evaluate(self, node: int, ask: bool) -> bool:
        """Called for each node before it is computed; where it returns True, also after that."""
        ring, giving = self._ring, self._giving
        assert ring is not None and giving is not None
        if not ask:
            giving.take_away()
            ring.give_back()
            return True
        weight = ctypes.c_size_t.from_address(node + _SOURCE).value
        index = self._indices.get(weight)
        if index is not None:
            try:
                address = ring.take(index) + self._shifts[index]
                if self.on_given:
                    self.on_given(weight, address)
                giving.give(weight, address)
            except (StreamError, EngineError) as error:
                self._refuse(error, weight)
                return True
        missing = giving.missing(node)
        if missing is not None:
            self._refuse(giving.too_early(missing), missing)
        return index is not None or missing is not None

    def _refuse(self, error: StreamError | EngineError, tensor: int) -> None:
        """End the pass. The engine stops after the current node, which still computes, on any data."""
        assert self._ring is not None and self._giving is not None
        self.error = error
        self._abort()
        self._giving.give(tensor, self._ring.address)

    def _send(self, tensors: Sequence[tuple[TensorSpec, int]], came: Callable[[int], None]) -> None:
        """Send devices their tensors in pieces; only a piece and its copy in a message are held here.

        The largest tensor comes first, as the engine does it, so that each device's last piece is small.
        """
        ggml = self._ggml
        memory = own_memory(SENT_BYTES)
        by_type: dict[int, list[tuple[TensorSpec, int]]] = {}
        for tensor, address in sorted(tensors, key=lambda one: -one[0].size_bytes):
            kind = ggml.ggml_backend_buffer_get_type(Node.from_address(address).buffer)
            by_type.setdefault(kind, []).append((tensor, address))
        for kind, group in by_type.items():
            for tensor, address in allocate(ggml, kind, group):
                send(ggml, self._files[tensor.file_index], tensor, address, memory)
                came(tensor.size_bytes)

    def _pin(self, tensors: dict[TensorSpec, int], came: Callable[[int], None]) -> None:
        for part in stretches(tensors):
            memory = own_memory(part.size_bytes)
            view, base = memoryview(memory), address_of(memory)
            for start in range(0, part.size_bytes, _PROGRESS_BYTES):
                piece = view[start : start + _PROGRESS_BYTES]
                self._files[part.file_index].read(piece, part.start_bytes + start)
                came(len(piece))
            self.locked_bytes += lock_memory(base, part.size_bytes)
            for tensor in part.tensors:
                set_data(tensors[tensor], base + tensor.offset_bytes - part.start_bytes)
            self._kept.append(memory)

    def _dequantize(self, tensor: TensorSpec, address: int, came: Callable[[int], None]) -> None:
        """Read a tensor as BF16, a piece of whole blocks at a time."""
        ggml = self._ggml
        number = self._types[tensor.type]
        block_bytes, block = ggml.ggml_type_size(number), ggml.ggml_blck_size(number)
        traits = TypeTraits.from_address(ggml.ggml_get_type_traits(number))
        if not (traits.is_quantized and traits.to_float):
            raise EngineError(f"{tensor.name} is {tensor.type}: there is nothing to dequantize")
        read = own_memory(_PIECE_BYTES + 2 * PAGE_BYTES)
        most = _PIECE_BYTES // block_bytes * block_bytes
        floats = own_memory(4 * most // block_bytes * block)
        memory = own_memory(2 * tensor.elements)
        source, middle, target = map(address_of, (read, floats, memory))
        for start in range(0, tensor.size_bytes, most):
            begin = tensor.offset_bytes + start
            end = begin + min(most, tensor.size_bytes - start)
            page = begin // PAGE_BYTES * PAGE_BYTES
            length = -(-(end - page) // PAGE_BYTES) * PAGE_BYTES
            self._files[tensor.file_index].read(memoryview(read)[:length], page)
            count = (end - begin) // block_bytes * block
            traits.to_float(source + begin - page, middle, count)
            ggml.ggml_fp32_to_bf16_row(middle, target, count)
            target += 2 * count
            came(end - begin)
        self.locked_bytes += lock_memory(address_of(memory), len(memory))
        set_data(address, address_of(memory))
        self._kept.append(memory)

    def _map(self, tensor: TensorSpec, address: int, path: Path) -> None:
        start = tensor.offset_bytes // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._table_file, self._table_start = os.open(path, os.O_RDONLY | os.O_CLOEXEC), start
        # Private and writable, for ctypes to take its address; nobody writes.
        self._table = mmap.mmap(
            self._table_file,
            tensor.offset_bytes + tensor.size_bytes - start,
            flags=mmap.MAP_PRIVATE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=start,
        )
        self._table.madvise(mmap.MADV_RANDOM)
        set_data(address, address_of(self._table) + tensor.offset_bytes - start)
