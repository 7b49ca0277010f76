"""Streamed weights in a pass: each matrix gets its address in the ring just before it is used, and loses it
after.

Between its turns a matrix points to memory that nobody may read. A pass that reads it out of turn ends: with
an error that names the matrix where the graph shows it, else by a segmentation fault.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence

from memfit.engines.llamacpp.graph import Node, set_data
from memfit.errors import EngineError

__all__ = ["Giving"]

_SOURCES, _NAME = Node.src.offset, Node.name.offset
_SourceArray = ctypes.c_size_t * (Node.src.size // ctypes.sizeof(ctypes.c_void_p))
_NO_ACCESS = 0  # PROT_NONE


class Giving:
    """Knows which streamed tensor has its address now: never more than one."""

    def __init__(self, names: Mapping[int, str], largest_bytes: int, *, has_devices: bool) -> None:
        """`names` of the streamed tensors by their address; `largest_bytes` is the size of the largest."""
        self._names = names
        self._by_name = {name.encode(): address for address, name in names.items()}
        self._has_devices = has_devices
        self._given = 0
        # Addresses without memory: reading one is a segmentation fault.
        self._nowhere = mmap.mmap(-1, largest_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._no_address = ctypes.addressof(ctypes.c_char.from_buffer(self._nowhere))
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = ctypes.c_void_p(self._no_address), ctypes.c_size_t(largest_bytes), _NO_ACCESS
        if libc.mprotect(*arguments) != 0:
            raise EngineError(f"memory cannot be made unreadable (errno {ctypes.get_errno()})")
        for tensor in names:
            set_data(tensor, self._no_address)

    def order(self, nodes: Sequence[Node]) -> list[int]:
        """The streamed tensors in the order of computation.

        Raises:
            EngineError: one is used in a way that streaming does not know.
        """
        self.require_turns(nodes)
        order = [node.src[0] for node in nodes if node.src[0] in self._names]
        if len(set(order)) != len(order) or set(order) != set(self._names):
            raise EngineError("the engine uses a streamed tensor twice in a pass, or never")
        return order

    def require_turns(self, nodes: Sequence[Node]) -> None:
        """Check that a graph reads no streamed tensor before its address is given.

        That happens through a view, whose address is set while the graph is made; through another source
        than the first; and through a device's copy, which is made before the node's callback.

        Raises:
            EngineError: one is read so; it is named.
        """
        for node in nodes:
            if node.view_src in self._names:
                raise self.too_early(node.view_src)
            for number, address in enumerate(node.src):
                original = self._original(address) if address else None
                if original and (number or original != address):
                    raise self.too_early(original)

    def _original(self, address: int) -> int | None:
        """The streamed tensor that a source is, or is a copy of: the scheduler calls it "DEVICE#tensor#0"."""
        if address in self._names:
            return address
        name = ctypes.string_at(address + _NAME)
        return self._by_name.get(name.split(b"#")[1]) if b"#" in name else None

    def too_early(self, tensor: int) -> EngineError:
        name = self._names[tensor]
        return EngineError(f"the engine would compute with {name} before it has been read from the disk")

    def give(self, tensor: int, address: int) -> None:
        """Give a tensor its address, for the node that is computed next."""
        self.take_away()
        set_data(tensor, address)
        self._given = tensor

    def take_away(self) -> None:
        """Called when the tensor has been computed with, or when its pass ended early."""
        if self._given:
            set_data(self._given, self._no_address)
            self._given = 0

    def missing(self, node: int) -> int | None:
        """A streamed tensor that a node would read although it has no address, or has read as a copy."""
        sources = _SourceArray.from_address(node + _SOURCES)[:]
        if not self._names.keys().isdisjoint(sources):
            return next((one for one in sources if one in self._names and one != self._given), None)
        if self._has_devices and (first := sources[0]):
            return self._original(first)
        return None
