"""What the engine's own graph computes, where, and how much: read from its nodes. Runs in the worker.

The source of every term of the speed model, so that no architecture has to be known here: a node is
counted by its operation and the shapes of what it reads. Knows nothing of seconds.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from memfit.memory.estimate import RAM

__all__ = ["WEIGHTS_USAGE", "Node", "nodes_of", "read_graph", "set_data"]

WEIGHTS_USAGE = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS
_EMPTY = frozenset({"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"})
_ROWS = frozenset({"ADD_ID", "GET_ROWS", "SET_ROWS"})  # touch single rows of a large table
# What an RPC server keeps of a graph while it computes it (ggml-rpc.cpp, `graph_compute`): the message, with
# 8 bytes a node and 296 a tensor; tensors and nodes made of it; two tables of entries in buckets.
_NODE_BYTES, _TENSOR_BYTES, _ENTRY_BYTES = 8, 296, 40
_Counted = tuple[str, str, int, int, int, int]  # kind, type, bytes, operations, cells, width
_WEIGHT_NAME = re.compile(rb"\.(weight|bias|scale)$")
_CACHE_NAME = re.compile(rb"cache_\w+_l(\d+)")


class Node(ctypes.Structure):
    """ggml's `ggml_tensor` (ggml.h)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
    )

    @property
    def elements(self) -> int:
        first, second, third, fourth = self.ne
        return int(first * second * third * fourth)


def set_data(tensor: int, address: int) -> None:
    ctypes.c_size_t.from_address(tensor + Node.data.offset).value = address


def nodes_of(ggml: Any, graph: int) -> Iterator[Node]:
    """A graph's nodes in order of execution."""
    for index in range(ggml.ggml_graph_n_nodes(graph)):
        yield Node.from_address(ggml.ggml_graph_node(graph, index))


def read_graph(ggml: Any, graph: int, devices: int, device_of: Callable[[Node], int]) -> dict[str, Any]:
    """`graph` as JSON values of memory.oracle's Graph, and the KV cache's bytes per layer.

    `device_of` says where a node is computed; `devices` is their number, RAM included.
    """
    reader = _Reader(ggml, devices)
    for node in nodes_of(ggml, graph):
        reader.read(node, device_of)
    return reader.result()


class _Reader:
    def __init__(self, ggml: Any, devices: int) -> None:
        self._ggml = ggml
        self._sums: dict[tuple[int, str, str, int, int], list[int]] = {}
        self._operation = functools.cache(lambda number: str(ggml.ggml_op_name(number).decode()))
        self._type = functools.cache(functools.partial(_type, ggml))  # by number
        self._here = RAM
        self._splits = [0] * devices
        self._split_bytes = [0] * devices
        self._weight_bytes = [0] * devices  # of weights that are copied from RAM
        self._copies: set[int] = set()
        self._computed: dict[bytes, int] = {}  # a node's name → where it was computed
        self._message_bytes = [0] * devices
        self._run = 0  # nodes that follow each other on the device that computes now
        self._longest_run = [0] * devices
        self._tensors: list[set[int]] = [set() for _ in range(devices)]  # that a device knows of
        self._caches: dict[int, tuple[int, int]] = {}  # address → layer, bytes

    def read(self, node: Node, device_of: Callable[[Node], int]) -> None:
        name = self._operation(node.op)
        device = self._here if name in _EMPTY else device_of(node)
        if device != self._here:
            self._splits[device] += 1
            self._here = device
            self._run = 0
        if device != RAM:
            self._describe(node)
        if name in _EMPTY:
            return
        addresses = [address for address in node.src if address]
        sources = [Node.from_address(address) for address in addresses]
        count = _COUNTERS.get(name)
        counted = count(self, node, sources) if count and self._multiplies(name, sources) else None
        for address, source in zip(addresses, sources, strict=True):
            # Of experts only those are copied that a token is routed to.
            size = counted[2] if counted and counted[0] == "experts" and source is sources[0] else None
            self._note(address, source, device, size)
        self._computed[node.name] = device
        if counted:
            self._add(device, counted)
        elif name in _ROWS:
            small = sources[0] if name == "SET_ROWS" else node
            self._add(device, ("other", "", 2 * self._bytes(small), 0, 0, 0))
        else:
            self._add(device, ("other", "", sum(map(self._bytes, (node, *sources))), 0, 0, 0))

    def result(self) -> dict[str, Any]:
        if self._here != RAM:  # the logits return
            self._splits[RAM] += 1
        layers = Counter[int]()
        for layer, size in self._caches.values():
            layers[layer] += size
        keys = ("device", "kind", "type", "cells", "width", "count", "bytes", "operations")
        return {
            "operations": [
                dict(zip(keys, (*key, *sums), strict=True)) for key, sums in sorted(self._sums.items())
            ],
            "splits": self._splits,
            "split_bytes": self._split_bytes,
            "sent_bytes": self._weight_bytes,
            "last_device": self._here,
            "message_bytes": [
                self._message_bytes[RAM],
                *map(self._served_bytes, range(1, len(self._splits))),
            ],
            "layer_kv_bytes": layers,
        }

    def _note(self, address: int, source: Node, device: int, size: int | None) -> None:
        """Copies between devices, of `size` if that is not the whole, and the caches behind views."""
        if copied := _copied(source):
            if address not in self._copies:
                self._copies.add(address)
                # A cache goes over as far as it is filled; here all of it is.
                cells = source.ne[1] if _CACHE_NAME.match(copied) else 0
                self._copy(copied, size or self._bytes(source), device, cells)
            return
        root = source
        while root.view_src:
            address = root.view_src
            root = Node.from_address(address)
        if address not in self._caches and (match := _CACHE_NAME.match(root.name)):
            self._caches[address] = (int(match[1]), self._bytes(root))

    def _copy(self, name: bytes, size: int, device: int, cells: int) -> None:
        """Count what a copy between devices takes while it is under way; `cells` are those of a KV cache.

        A remote device holds each message that it receives or sends, and so does this process, which sends
        them one by one.
        """
        if _WEIGHT_NAME.search(name):
            self._weight_bytes[device] += size
            return
        if cells:
            self._add(device, ("cache sent", "", size, 0, cells, 0))
        else:
            self._split_bytes[device] += size
        origin = self._computed.get(name, RAM)
        for end in (origin, device):
            if end != RAM:
                self._message_bytes[end] = max(self._message_bytes[end], size)
        if device != RAM:
            held = size * (1 if origin == RAM else 2)  # one more on its way through here
            self._message_bytes[RAM] = max(self._message_bytes[RAM], held)

    def _describe(self, node: Node) -> None:
        """Count what a remote device is told of a node: its sources too, and theirs if computed there."""
        self._run += 1
        self._longest_run[self._here] = max(self._longest_run[self._here], self._run)
        known = (ctypes.addressof(node), node.view_src, *node.src)
        self._tensors[self._here].update(one for one in known if one)

    def _served_bytes(self, device: int) -> int:
        """What an RPC server needs beside its buffers for one part of the graph, no less than for any."""
        nodes, tensors = self._longest_run[device], len(self._tensors[device])
        message = nodes * _NODE_BYTES + tensors * _TENSOR_BYTES + (nodes + tensors) * _ENTRY_BYTES
        kept = (nodes + tensors) * self._ggml.ggml_tensor_overhead()
        kept += self._ggml.ggml_graph_overhead_custom(nodes, False)
        return int(kept) + max(self._message_bytes[device], message) if nodes else 0

    def _multiplies(self, name: str, sources: Sequence[Node]) -> bool:
        """Not a product of two activations, as attention without its own kernel has."""
        if name == "FLASH_ATTN_EXT" or _WEIGHT_NAME.search(_copied(sources[0])):
            return True
        buffer = sources[0].buffer
        return bool(buffer) and self._ggml.ggml_backend_buffer_get_usage(buffer) == WEIGHTS_USAGE

    def _add(self, device: int, counted: _Counted) -> None:
        kind, name, size, operations, cells, width = counted
        sums = self._sums.setdefault((device, kind, name, cells, width), [0, 0, 0])
        for index, amount in enumerate((1, size, operations)):
            sums[index] += amount

    def _matmul(self, node: Node, sources: Sequence[Node]) -> _Counted:
        weight = sources[0]
        operations = 2 * weight.ne[0] * node.elements
        return "matmul", self._type(weight.type)[0], self._bytes(weight), operations, 0, weight.ne[0]

    def _experts(self, node: Node, sources: Sequence[Node]) -> _Counted:
        """Of a mixture, only the experts that some token is routed to are read."""
        weight = sources[0]
        experts, used, tokens = weight.ne[2], node.ne[1], node.ne[2]
        # Expected number of different experts, every token choosing `used` of them at random.
        read = experts * (1 - (1 - used / experts) ** tokens)
        size = round(self._bytes(weight) * read / experts)
        operations = 2 * weight.ne[0] * node.elements
        return "experts", self._type(weight.type)[0], size, operations, 0, weight.ne[0]

    def _attention(self, _: Node, sources: Sequence[Node]) -> _Counted:
        query, key, value = sources[:3]
        head, tokens, heads = query.ne[0], query.ne[1], query.ne[2]
        cells = key.ne[1]
        operations = 2 * heads * tokens * cells * (key.ne[0] + value.ne[0])
        size = self._bytes(key) + self._bytes(value)
        return "attention", self._type(key.type)[0], size, operations, cells, head

    def _bytes(self, node: Node) -> int:
        _, block_bytes, block_elements = self._type(node.type)
        return int(node.elements * block_bytes // block_elements)


def _copied(node: Node) -> bytes:
    """The name of what `node` is a copy of, on another device; empty where it is none."""
    _, hash_sign, rest = node.name.partition(b"#")  # the scheduler calls it "DEVICE#tensor#0"
    return rest.partition(b"#")[0] if hash_sign else b""


def _type(ggml: Any, number: int) -> tuple[str, int, int]:
    """A type's name, and bytes and elements of a block."""
    name = ggml.ggml_type_name(number).decode().upper()
    return name, ggml.ggml_type_size(number), ggml.ggml_blck_size(number)


_COUNTERS: dict[str, Callable[..., _Counted]] = {
    "MUL_MAT": _Reader._matmul,
    "MUL_MAT_ID": _Reader._experts,
    "FLASH_ATTN_EXT": _Reader._attention,
}
