"""How fast this CPU runs the engine's own matrix kernels, per quantization type. Runs in the worker.

Measured: one multiplication with a single token, weights streamed from memory (generation), one with
512 tokens (prompt), and the cost of a graph node that does almost nothing (a barrier between threads).
Not measured: attention, whose cost grows with depth.
"""

from __future__ import annotations

import ctypes
import resource
import time
from typing import Any

from memfit.engines.llamacpp.library import Library
from memfit.units import MIB

__all__ = ["BusyMachineError", "measure"]

_COLUMNS = 2048  # a multiple of every type's block
_STREAMED_BYTES = 64 * MIB  # beyond most CPUs' caches, yet below any budget
_PROMPT_ROWS = 2048
_PROMPT_TOKENS = 512
_EMPTY_NODES = 256
# The fastest run counts: noise only ever slows. A preempted thread leaves the others spinning at a
# barrier, a thousand times slower, so only runs with next to no preemption are clean.
_CLEAN_RUNS = 5
_LEAST_SECONDS = 0.04  # of clean runs together: memory bandwidth varies from moment to moment
_QUIET_PREEMPTIONS = 100  # per second, by the system's own housekeeping; a busy program makes 250 and more
_PATIENCE_SECONDS = 0.5  # per graph, until the machine counts as busy
_TYPE_F32 = 0

_P = ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[list[Any], Any]] = {
    "ggml_backend_alloc_ctx_tensors_from_buft": ([_P, _P], _P),
    "ggml_backend_cpu_buffer_type": ([], _P),
    "ggml_backend_buffer_clear": ([_P, ctypes.c_uint8], None),
    "ggml_backend_buffer_free": ([_P], None),
    "ggml_backend_buffer_set_usage": ([_P, ctypes.c_int], None),
    "ggml_backend_dev_supports_op": ([_P, _P], ctypes.c_bool),
    "ggml_backend_free": ([_P], None),
    "ggml_backend_graph_compute": ([_P, _P], ctypes.c_int),
    "ggml_backend_tensor_set": ([_P, _P, ctypes.c_size_t, ctypes.c_size_t], None),
    "ggml_build_forward_expand": ([_P, _P], None),
    "ggml_free": ([_P], None),
    "ggml_mul_mat": ([_P, _P, _P], _P),
    "ggml_nbytes": ([_P], ctypes.c_size_t),
    "ggml_new_graph": ([_P], _P),
    "ggml_new_tensor_2d": ([_P, ctypes.c_int, ctypes.c_int64, ctypes.c_int64], _P),
    "ggml_row_size": ([ctypes.c_int, ctypes.c_int64], ctypes.c_size_t),
    "ggml_type_name": ([ctypes.c_int], ctypes.c_char_p),
    "ggml_backend_reg_get_proc_address": ([_P, ctypes.c_char_p], _P),
    "ggml_backend_dev_backend_reg": ([_P], _P),
    "ggml_backend_get_device": ([_P], _P),
}


class BusyMachineError(Exception):
    """In no run of a graph were its threads left alone."""


class _InitParameters(ctypes.Structure):
    """ggml's `ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", _P), ("no_alloc", ctypes.c_bool))


def measure(
    library: Library, type_names: list[str], *, repack: bool, threads: int
) -> dict[str, dict[str, float] | None]:
    """Per type: bytes per second streamed with one token, operations per second with 512 tokens, and
    seconds of an empty node. With `repack`, as the kernels run after repacking; None where this CPU
    has no such kernels for a type.

    Raises:
        BusyMachineError: other programs keep the cores busy.
    """
    ggml = library.ggml_base
    for name, (arguments, result) in _FUNCTIONS.items():
        function = getattr(ggml, name)
        function.argtypes, function.restype = arguments, result
    ggml.ggml_init.argtypes, ggml.ggml_init.restype = [_InitParameters], _P
    cpu = library.ggml_cpu
    cpu.ggml_backend_cpu_init.restype = _P
    cpu.ggml_backend_cpu_set_n_threads.argtypes = [_P, ctypes.c_int]

    backend = cpu.ggml_backend_cpu_init()
    cpu.ggml_backend_cpu_set_n_threads(backend, threads)
    try:
        bench = _Bench(ggml, backend, plain=ggml.ggml_backend_cpu_buffer_type())
        numbers = _type_numbers(ggml)
        node_seconds = bench.empty_node_seconds()
        speeds: dict[str, dict[str, float] | None] = {}
        for name in type_names:
            measured = bench.type_speed(numbers[name], repack=repack)
            speeds[name] = None if measured is None else {**measured, "node_seconds": node_seconds}
        return speeds
    finally:
        ggml.ggml_backend_free(backend)


class _Bench:
    """Builds small graphs on one CPU backend and times them."""

    def __init__(self, ggml: Any, backend: int, *, plain: int) -> None:
        self._ggml = ggml
        self._backend = backend
        self._plain = plain
        self._device = ggml.ggml_backend_get_device(backend)
        self._repacking = self._extra_buffer_types()

    def type_speed(self, type_number: int, *, repack: bool) -> dict[str, float] | None:
        """Bytes/s with one token and operations/s with 512 of one type's multiplication."""
        matrix_bytes = self._ggml.ggml_row_size(type_number, _COLUMNS) * _PROMPT_ROWS
        count = max(1, _STREAMED_BYTES // matrix_bytes)
        seconds = self._multiply(type_number, count, 1, repack)
        if seconds is None:
            return None
        prompt_seconds = self._multiply(type_number, 1, _PROMPT_TOKENS, repack)
        assert prompt_seconds is not None, "the type is repacked whatever the number of tokens"
        operations = 2 * _COLUMNS * _PROMPT_ROWS * _PROMPT_TOKENS
        return {
            "bytes_per_second": count * matrix_bytes / seconds,
            "operations_per_second": operations / prompt_seconds,
        }

    def empty_node_seconds(self) -> float:
        """Seconds of one node with next to no work, one barrier included."""
        context = self._context(_EMPTY_NODES + 2)
        weight = self._ggml.ggml_new_tensor_2d(context, _TYPE_F32, 32, 32)
        node = self._ggml.ggml_new_tensor_2d(context, _TYPE_F32, 32, 1)
        graph = self._ggml.ggml_new_graph(context)
        for _ in range(_EMPTY_NODES):
            node = self._ggml.ggml_mul_mat(context, weight, node)
        self._ggml.ggml_build_forward_expand(graph, node)
        buffer = self._allocate(context, self._plain)
        seconds = self._time(graph) / _EMPTY_NODES
        self._ggml.ggml_backend_buffer_free(buffer)
        self._ggml.ggml_free(context)
        return seconds

    def _multiply(self, type_number: int, count: int, tokens: int, repack: bool) -> float | None:
        """Seconds of `count` multiplications of separate matrices with `tokens` columns; None where
        they should be repacked and this CPU does not repack the type."""
        ggml = self._ggml
        weights_context, context = self._context(count), self._context(3 * count)
        weights = [
            ggml.ggml_new_tensor_2d(weights_context, type_number, _COLUMNS, _PROMPT_ROWS)
            for _ in range(count)
        ]
        graph = ggml.ggml_new_graph(context)
        products = []
        for weight in weights:
            activations = ggml.ggml_new_tensor_2d(context, _TYPE_F32, _COLUMNS, tokens)
            products.append(ggml.ggml_mul_mat(context, weight, activations))
            ggml.ggml_build_forward_expand(graph, products[-1])
        seconds = None
        for buffer_type in self._repacking if repack else [self._plain]:
            weights_buffer = self._allocate(weights_context, buffer_type, clear=not repack)
            if ggml.ggml_backend_dev_supports_op(self._device, products[0]):
                if repack:  # setting the data is what repacks it
                    zeros = ctypes.create_string_buffer(ggml.ggml_nbytes(weights[0]))
                    for weight in weights:
                        ggml.ggml_backend_tensor_set(weight, zeros, 0, len(zeros))
                buffer = self._allocate(context, self._plain)
                seconds = self._time(graph)
                ggml.ggml_backend_buffer_free(buffer)
            ggml.ggml_backend_buffer_free(weights_buffer)
            if seconds is not None:
                break
            for weight in weights:  # to be placed again; ggml_tensor: buffer at 8, data at 248, extra at 320
                for offset in (8, 248, 320):
                    ctypes.c_void_p.from_address(weight + offset).value = None
        for held in (context, weights_context):
            ggml.ggml_free(held)
        return seconds

    def _allocate(self, context: int, buffer_type: int, *, clear: bool = True) -> int:
        buffer = self._ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if clear:
            self._ggml.ggml_backend_buffer_clear(buffer, 0)
        return int(buffer)

    def _context(self, tensors: int) -> int:
        # Room for tensor structs and one default graph of 2048 nodes; no data lies in it.
        size = MIB + 1024 * tensors
        return int(self._ggml.ggml_init(_InitParameters(size, None, True)))

    def _time(self, graph: int) -> float:
        self._ggml.ggml_backend_graph_compute(self._backend, graph)  # starts threads, touches memory
        seconds: list[float] = []
        clean_runs, clean_seconds = 0, 0.0
        while clean_runs < _CLEAN_RUNS or clean_seconds < _LEAST_SECONDS:
            preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            started = time.perf_counter()
            self._ggml.ggml_backend_graph_compute(self._backend, graph)
            seconds.append(time.perf_counter() - started)
            preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - preempted
            if preempted <= 1 + _QUIET_PREEMPTIONS * seconds[-1]:
                clean_runs, clean_seconds = clean_runs + 1, clean_seconds + seconds[-1]
            if sum(seconds) > _PATIENCE_SECONDS:
                break
        if clean_runs == 0:
            raise BusyMachineError
        return min(seconds)

    def _extra_buffer_types(self) -> list[int]:
        """The CPU device's buffer types that rewrite weights."""
        registry = self._ggml.ggml_backend_dev_backend_reg(self._device)
        address = self._ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(_P), _P)(address)(self._device)
        found: list[int] = []
        while listed and listed[len(found)]:
            found.append(int(listed[len(found)]))
        return found


def _type_numbers(ggml: Any) -> dict[str, int]:
    """GGML's numbers by upper-case name ("Q4_K"), as the engine itself names them."""
    count = 64  # beyond GGML_TYPE_COUNT the table holds nothing
    names = {}
    for number in range(min(count, _TYPE_COUNT)):
        name = ggml.ggml_type_name(number)
        if name:
            names[name.decode().upper()] = number
    return names


_TYPE_COUNT = 43  # GGML_TYPE_COUNT of the pinned engine
