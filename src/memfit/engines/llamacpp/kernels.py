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

__all__ = ["measure"]

_COLUMNS = 2048  # a multiple of every type's block
_STREAMED_BYTES = 64 * MIB  # beyond most CPUs' caches, yet below any budget
_PROMPT_ROWS = 2048
_PROMPT_TOKENS = 512
_EMPTY_NODES = 256
# The fastest run counts: noise only ever slows. A preempted thread leaves the others spinning at a
# barrier, a thousand times slower, so only runs without preemption count as clean.
_CLEAN_RUNS = 3
_PATIENCE_SECONDS = 0.5  # per graph, on a machine too busy for clean runs
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


class _InitParameters(ctypes.Structure):
    """ggml's `ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", _P), ("no_alloc", ctypes.c_bool))


def measure(
    library: Library, type_names: list[str], *, repack: bool, threads: int
) -> tuple[dict[str, dict[str, float]], bool]:
    """Per type: bytes per second streamed with one token, operations per second with 512 tokens, and
    seconds of an empty node. With `repack`, as the kernels run after repacking, where this CPU has it.
    And whether the machine was quiet enough for these to be its speeds.
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
        speeds = {}
        for name in type_names:
            streamed, computed = bench.type_speed(numbers[name], repack=repack)
            speeds[name] = {
                "bytes_per_second": streamed,
                "operations_per_second": computed,
                "node_seconds": node_seconds,
            }
        return speeds, bench.clean
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
        self.clean = True  # every graph had a run without preemption

    def type_speed(self, type_number: int, *, repack: bool) -> tuple[float, float]:
        """(bytes/s with one token, operations/s with 512) of one type's multiplication."""
        row_bytes = self._ggml.ggml_row_size(type_number, _COLUMNS)
        matrix_bytes = row_bytes * _PROMPT_ROWS
        count = max(1, _STREAMED_BYTES // matrix_bytes)
        seconds = self._multiply(type_number, count, 1, repack)
        prompt_seconds = self._multiply(type_number, 1, _PROMPT_TOKENS, repack)
        operations = 2 * _COLUMNS * _PROMPT_ROWS * _PROMPT_TOKENS
        return count * matrix_bytes / seconds, operations / prompt_seconds

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

    def _multiply(self, type_number: int, count: int, tokens: int, repack: bool) -> float:
        """Seconds of `count` multiplications of separate matrices with `tokens` columns."""
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
        weights_buffer = self._weights_buffer(weights_context, weights, products[0], repack)
        buffer = self._allocate(context, self._plain)
        seconds = self._time(graph)
        for held in (buffer, weights_buffer):
            ggml.ggml_backend_buffer_free(held)
        for held in (context, weights_context):
            ggml.ggml_free(held)
        return seconds

    def _weights_buffer(self, context: int, weights: list[int], product: int, repack: bool) -> int:
        """Weights where the engine would put them: in a repacking buffer if it takes this type."""
        ggml = self._ggml
        for buffer_type in self._repacking if repack else []:
            buffer = self._allocate(context, buffer_type, clear=False)
            if ggml.ggml_backend_dev_supports_op(self._device, product):
                zeros = ctypes.create_string_buffer(ggml.ggml_nbytes(weights[0]))
                for weight in weights:  # setting the data is what repacks it
                    ggml.ggml_backend_tensor_set(weight, zeros, 0, len(zeros))
                return buffer
            ggml.ggml_backend_buffer_free(buffer)
            for weight in weights:  # ggml_tensor: buffer at 8, data at 248, extra at 320
                for offset in (8, 248, 320):
                    ctypes.c_void_p.from_address(weight + offset).value = None
        return self._allocate(context, self._plain)

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
        clean_runs = 0
        while clean_runs < _CLEAN_RUNS:
            preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            started = time.perf_counter()
            self._ggml.ggml_backend_graph_compute(self._backend, graph)
            seconds.append(time.perf_counter() - started)
            clean_runs += resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == preempted
            if sum(seconds) > _PATIENCE_SECONDS:
                break
        self.clean = self.clean and clean_runs > 0
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
