"""The engine's buffers: which types the CPU has beside its plain one, and how tensors fill them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from memfit.engines.llamacpp.c_functions import InitParameters
from memfit.engines.llamacpp.graph import Node
from memfit.headers.model_spec import TensorSpec
from memfit.units import MIB

__all__ = ["Form", "extra_buffer_types", "form_of", "give_form", "packed", "rewriting_type"]

_TYPE_F32 = 0


class Form(NamedTuple):
    """What a node's data is, and where."""

    type: int
    steps: tuple[int, ...]  # bytes from one to the next, by dimension
    buffer: int | None
    data: int | None
    extra: int | None  # what a buffer that rewrites weights knows of it


def form_of(address: int) -> Form:
    node = Node.from_address(address)
    return Form(node.type, tuple(node.nb), node.buffer, node.data, node.extra)


def give_form(address: int, form: Form) -> None:
    node = Node.from_address(address)
    node.type, node.nb[:], node.buffer, node.data, node.extra = form


def rewriting_type(ggml: Any, cpu: int, matrix: int) -> int | None:
    """The first buffer type that rewrites a matrix, given by its node's address, for kernels of its own; None
    where this CPU has none, as of an odd number of rows."""
    before = form_of(matrix)
    room = ggml.ggml_init(InitParameters(MIB, None, True))
    try:
        column = ggml.ggml_new_tensor_2d(room, _TYPE_F32, Node.from_address(matrix).ne[0], 1)
        product = ggml.ggml_mul_mat(room, matrix, column)
        for kind in extra_buffer_types(ggml, cpu):
            buffer = ggml.ggml_backend_buft_alloc_buffer(kind, 64)
            give_form(matrix, before._replace(buffer=buffer, data=None, extra=None))
            fits = ggml.ggml_backend_dev_supports_op(cpu, product)
            give_form(matrix, before)
            ggml.ggml_backend_buffer_free(buffer)
            if fits:
                return kind
    finally:
        ggml.ggml_free(room)
    return None


def extra_buffer_types(ggml: Any, cpu: int) -> Sequence[int]:
    """The CPU device's buffer types that rewrite weights, in the order of the engine's preference."""
    registry = ggml.ggml_backend_dev_backend_reg(cpu)
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return []
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(cpu)
    found: list[int] = []
    while listed and listed[len(found)]:
        found.append(int(listed[len(found)]))
    return found


def packed(
    ggml: Any, kind: int, tensors: Sequence[tuple[TensorSpec, int]]
) -> Iterator[tuple[int, list[tuple[TensorSpec, int, int]]]]:
    """The bytes of each buffer of this type, and where each tensor begins in it."""
    alignment, most = ggml.ggml_backend_buft_get_alignment(kind), ggml.ggml_backend_buft_get_max_size(kind)
    end = 0
    inside: list[tuple[TensorSpec, int, int]] = []
    for tensor, address in tensors:
        size = ggml.ggml_backend_buft_get_alloc_size(kind, address)
        start = -(-end // alignment) * alignment
        if inside and start + size > most:
            yield end, inside
            start, inside = 0, []
        inside.append((tensor, address, start))
        end = start + size
    yield end, inside
