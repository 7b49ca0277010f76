"""Streamed matrices have their address in their turn and at no other time: on nodes made here, no engine."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from typing import Any

import pytest

from memfit.engines.llamacpp.giving import Giving
from memfit.engines.llamacpp.graph import Node
from memfit.engines.llamacpp.weights import OwnWeights
from memfit.errors import EngineError
from memfit.hardware.direct_file import StreamError

_BYTES = 3 * 4096
_KEPT: list[Node] = []  # a node knows its sources by address only


def _node(name: str = "", *sources: Node | None, view_of: Node | None = None) -> Node:
    node = Node(name=name.encode())
    _KEPT.append(node)
    for index, source in enumerate(sources):
        node.src[index] = ctypes.addressof(source) if source is not None else None
    node.view_src = ctypes.addressof(view_of) if view_of is not None else None
    return node


class _Model:
    """Two streamed matrices, a pinned one, and a pass over them."""

    def __init__(self, *, has_devices: bool = True) -> None:
        self.first, self.second, self.pinned = _node("one.weight"), _node("two.weight"), _node("norm.weight")
        self.names = {ctypes.addressof(one): one.name.decode() for one in (self.first, self.second)}
        self.giving = Giving(self.names, _BYTES, has_devices=has_devices)
        self.nowhere = self.first.data
        self.input = _node("input")
        self.product = _node("product", self.first, self.input)
        self.normed = _node("normed", self.product, self.pinned)
        self.result = _node("result", self.second, self.normed)
        self.nodes = [self.product, self.normed, self.result]


def _address(node: Node) -> int:
    return ctypes.addressof(node)


def test_the_order_of_computation() -> None:
    model = _Model()
    model.giving.require_turns(model.nodes)
    assert model.giving.order(model.nodes) == [_address(model.first), _address(model.second)]


def test_twice_or_never_cannot_be_streamed() -> None:
    model = _Model()
    for nodes in (model.nodes[:2], [*model.nodes, model.product]):
        with pytest.raises(EngineError, match="twice in a pass, or never"):
            model.giving.order(nodes)


@pytest.mark.parametrize("how", ["copy", "view", "second source"])
def test_a_pass_that_reads_out_of_turn_is_refused_by_name(how: str) -> None:
    """What op_offload does: the scheduler's copy is made before the node's callback."""
    model = _Model()
    reader = {
        "copy": _node("product", _node("Vulkan0#two.weight#0"), model.input),
        "view": _node("part", model.second, view_of=model.second),
        "second source": _node("sum", model.normed, None, model.second),
    }[how]
    for look in (model.giving.require_turns, model.giving.order):
        with pytest.raises(EngineError, match=r"compute with two\.weight before it has been read"):
            look([*model.nodes, reader])


def test_copies_of_other_things_are_as_they_were() -> None:
    model = _Model()
    copies = [_node("RPC[127.0.0.1:1]#normed#0"), _node("Vulkan0#norm.weight#0"), _node("a#b")]
    reader = _node("later", *copies)
    model.giving.require_turns([*model.nodes, reader])
    assert model.giving.missing(_address(reader)) is None


def test_one_has_an_address_at_a_time() -> None:
    model = _Model()
    assert model.first.data == model.second.data == model.nowhere
    model.giving.give(_address(model.first), 4096)
    assert (model.first.data, model.second.data) == (4096, model.nowhere)
    model.giving.give(_address(model.second), 8192)  # a pass that was cancelled did not take it away
    assert (model.first.data, model.second.data) == (model.nowhere, 8192)
    model.giving.take_away()
    model.giving.take_away()
    assert (model.first.data, model.second.data) == (model.nowhere, model.nowhere)


def test_every_source_is_looked_at() -> None:
    model = _Model()
    both = _node("both", model.first, None, model.second)
    assert model.giving.missing(_address(both)) == _address(model.first)
    model.giving.give(_address(model.first), 4096)
    assert model.giving.missing(_address(model.product)) is None
    assert model.giving.missing(_address(both)) == _address(model.second)
    assert model.giving.missing(_address(model.normed)) is None


@pytest.mark.parametrize("has_devices", [True, False])
def test_a_copy_is_seen_where_there_is_a_device(has_devices: bool) -> None:
    model = _Model(has_devices=has_devices)
    copied = _node("product", _node("CUDA0#two.weight#0"), model.input)
    assert model.giving.missing(_address(copied)) == (_address(model.second) if has_devices else None)


def test_reading_what_has_no_address_ends_the_process() -> None:
    """Whatever way to it is not foreseen: it is never computed with."""
    code = """
import ctypes, sys
from memfit.engines.llamacpp.giving import Giving
from memfit.engines.llamacpp.graph import Node
node, size = Node(), int(sys.argv[1])
giving = Giving({ctypes.addressof(node): "one"}, size, has_devices=False)
print("ready", flush=True)
print(ctypes.string_at(node.data + int(sys.argv[2]), 1))
"""
    for offset in (0, _BYTES - 1):
        done = subprocess.run([sys.executable, "-c", code, f"{_BYTES}", f"{offset}"], capture_output=True)
        assert (done.returncode, done.stdout) == (-signal.SIGSEGV, b"ready\n")


# --- the callback ---


class _Ring:
    address = 1 << 20

    def __init__(self, error: StreamError | None = None) -> None:
        self._error = error
        self.log: list[Any] = []

    def take(self, index: int) -> int:
        self.log.append(index)
        if self._error:
            raise self._error
        return self.address + 4096 * index

    def give_back(self) -> None:
        self.log.append("back")


def _weights(model: _Model, ring: _Ring) -> Any:
    weights: Any = object.__new__(OwnWeights)
    weights.error, weights._giving, weights._ring = None, model.giving, ring
    weights._indices = {address: index for index, address in enumerate(model.names)}
    weights._shifts = [10, 20]
    weights.on_given = None
    weights.aborted = 0

    def abort() -> None:
        weights.aborted += 1

    weights._abort = abort
    return weights


def _compute(weights: Any, node: Node) -> bool:
    """What the scheduler does with a node; the address that it computes with is there meanwhile."""
    wanted: bool = weights.evaluate(_address(node), True)
    return wanted


def test_a_pass() -> None:
    model, ring = _Model(), _Ring()
    weights = _weights(model, ring)
    assert _compute(weights, model.product)
    assert model.first.data == _Ring.address + 10
    assert weights.evaluate(_address(model.product), False)
    assert model.first.data == model.nowhere
    assert not _compute(weights, model.normed)
    assert _compute(weights, model.result)
    assert model.second.data == _Ring.address + 4096 + 20
    assert ring.log == [0, "back", 1] and weights.error is None and not weights.aborted


@pytest.mark.parametrize("reads", ["unknown", "copy"])
def test_what_was_never_given_ends_the_request_by_name(reads: str) -> None:
    model, ring = _Model(), _Ring()
    weights = _weights(model, ring)
    del weights._indices[_address(model.second)]
    node = model.result if reads == "unknown" else _node("x", _node("Vulkan0#two.weight#0"), model.input)
    assert _compute(weights, node)
    assert (
        str(weights.error) == "the engine would compute with two.weight before it has been read from the disk"
    )
    assert weights.aborted == 1 and ring.log == []
    assert model.second.data == _Ring.address  # this one node is still computed: with memory that is there


def test_a_disk_that_fails_ends_the_request() -> None:
    model, ring = _Model(), _Ring(StreamError("it became shorter"))
    weights = _weights(model, ring)
    assert _compute(weights, model.product)
    assert str(weights.error) == "it became shorter" and weights.aborted == 1
    assert model.first.data == _Ring.address
