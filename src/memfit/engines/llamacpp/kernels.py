"""How fast a device runs the engine's own kernels: this CPU, a GPU, or one behind RPC. Runs in the worker.

Measured are:
- for each quantization type, a multiplication with 1, 16 and 512 tokens, weights streamed from memory;
- attention over a KV cache, with 1 and with 512 tokens;
- activations passing through memory, and a graph node that does next to nothing;
- a graph split: what it takes to hand a device its input and take the result back;
- how fast weights in RAM reach a local GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
import time
from collections.abc import Callable, Iterator
from statistics import median

from memfit.closing import Closing
from memfit.engines.llamacpp.buffers import extra_buffer_types
from memfit.engines.llamacpp.c_functions import InitParameters
from memfit.engines.llamacpp.graph import Node
from memfit.engines.llamacpp.library import Library
from memfit.hardware.cpu_use import involuntary_switches, waited_seconds, waits
from memfit.planner.speed import EXPERTS
from memfit.units import KIB, MIB

__all__ = ["Bench", "BusyMachineError"]

_COLUMNS = 2048  # a multiple of every type's block
_ROWS = 2048
_STREAMED_BYTES = 256 * MIB  # far beyond most CPUs' caches: 64 MiB still measured 1.6 times too fast
_ROOM_SHARE = 0.4  # of a small device's room: activations and the messages want some too
_TOKENS = 512
_BATCH_TOKENS = 16
_HEADS, _KV_HEADS = 16, 4
_LONE_HEADS = 12  # whose keys and values no other head shares, so that reading them is all
_EXPERTS, _EXPERTS_USED, _EXPERT_ROWS = 16, 2, 512
_CELLS = 4096  # of the KV cache, with one token
_PROMPT_CELLS = 1024
_MOST_MATRICES = 900  # of a graph that holds 2,048 tensors, each matrix with its input
_EMPTY_NODES = 240
_SENT_BYTES = 64 * MIB  # as large as a matrix
_SMALL_GRAPH = 24  # nodes of a typical part of a layer
# The median of clean runs counts, as a user has them: the fastest is 10 to 20 % faster. Where a thread waits
# for a CPU, all others wait for it at a barrier, so a run is clean only if it had next to no such waiting.
_CLEAN_RUNS = 5
_LEAST_SECONDS = 0.04  # of clean runs together: memory bandwidth varies from moment to moment
_WAITED, _WAITED_SECONDS = 0.02, 50e-6  # of a clean run, at most: a share, and what waking up takes
_PATIENCE_SECONDS = 0.5  # per graph, until the machine counts as busy
# While another device works, a device's threads fall asleep. Without this pause before each round trip one
# takes 75 us over loopback; with it 210, of a server with two threads 250.
_PAUSE_SECONDS = 0.001
# Leaving a device and coming back costs a model 350 us, or 600: eight routers moved to RAM, loopback.
_EXCURSION = 2.0
_NO_SPLITS = {"split_seconds": 0.0, "split_bytes_per_second": 1e12}  # where the CPU computes everything
_TYPE_F32, _TYPE_I32 = 0, 26
_P = ctypes.c_void_p


class BusyMachineError(Exception):
    """Other programs interrupted every run of a graph."""


class _UnsupportedError(Exception):
    """The device has no kernel for a graph."""


class Bench(Closing):
    """Builds small graphs for one device and times them. A context manager.

    Every method raises BusyMachineError where other programs keep the cores busy, and MemoryError where
    the device has no room for the test.
    """

    def __init__(
        self,
        library: Library,
        device: int,
        *,
        threads: int | None,
        repack: bool = False,
        room_bytes: int | None = None,
    ) -> None:
        """`threads` is set on a CPU; None leaves the device as it is. `repack`: weights are rewritten.
        `room_bytes` is what the device has for the test, where that is little."""
        ggml = self._ggml = library.ggml_base
        self._device = device
        self._threads = threads
        self._backend = ggml.ggml_backend_dev_init(device, None)
        if threads is not None:
            library.ggml_cpu.ggml_backend_cpu_set_n_threads(self._backend, threads)
        self._plain = ggml.ggml_backend_dev_buffer_type(device)
        self._repack = repack
        room = _ROOM_SHARE * room_bytes if room_bytes else _STREAMED_BYTES
        self._streamed_bytes = min(_STREAMED_BYTES, int(room))
        self._numbers = library.type_numbers

    def close(self) -> None:
        self._ggml.ggml_backend_free(self._backend)

    def weights(self, key: str) -> dict[str, float] | None:
        """Bytes/s with one token and operations/s with 16 and with 512; None where the CPU does not repack
        the type, or the device has no kernel for it.

        `key` is a `weight_key`: "Q4_K", "Q8_0/576", "experts Q4_K".
        """
        type_name, _, length = key.removeprefix(EXPERTS).partition("/")
        experts = key.startswith(EXPERTS)
        columns = int(length or _COLUMNS)
        number = self._numbers[type_name]
        rows = _EXPERTS_USED * _EXPERT_ROWS if experts else _ROWS
        matrix_bytes = self._ggml.ggml_row_size(number, columns) * rows
        count = min(max(1, self._streamed_bytes // matrix_bytes), _MOST_MATRICES)
        seconds = self._multiply(number, columns, count, 1, experts=experts)
        if seconds is None:
            return None
        rates = {"bytes_per_second": count * matrix_bytes / seconds}
        for name, tokens, matrices in (
            ("batch_operations_per_second", _BATCH_TOKENS, max(1, count // 8)),
            ("operations_per_second", _TOKENS, 1),
        ):
            seconds = self._multiply(number, columns, matrices, tokens, experts=experts)
            assert seconds is not None, "the type is repacked whatever the number of tokens"
            rates[name] = 2 * columns * rows * tokens * matrices / seconds
        return rates

    def attention(self, key: str) -> dict[str, float] | None:
        """Operations/s over a KV cache, with one token and with 512, and bytes/s of one that no CPU's cache
        holds. `key` is its type, and the numbers per head: "F16/128". None where a head is no whole number of
        the type's blocks, or the device has no such kernel."""
        type_name, _, length = key.partition("/")
        number, head = self._numbers[type_name], int(length)
        if head % self._ggml.ggml_blck_size(number):
            return None

        def seconds(tokens: int, heads: int, kv_heads: int, cells: int) -> float:
            def build(context: int) -> int:
                ggml = self._ggml
                query = ggml.ggml_new_tensor_3d(context, _TYPE_F32, head, tokens, heads)
                # As the cache lies in memory: a cell's heads side by side.
                caches = [ggml.ggml_new_tensor_3d(context, number, head, kv_heads, cells) for _ in "kv"]
                key, value = (ggml.ggml_permute(context, cache, 0, 2, 1, 3) for cache in caches)
                scale = head**-0.5
                return int(ggml.ggml_flash_attn_ext(context, query, key, value, None, scale, 0.0, 0.0))

            return self._run(build)

        cell_bytes = 2 * _LONE_HEADS * self._ggml.ggml_row_size(number, head)
        cells = max(_CELLS, self._streamed_bytes // 2 // cell_bytes // _CELLS * _CELLS)

        def operations(tokens: int, cells: int) -> float:
            """Per second."""
            return 4 * _HEADS * tokens * cells * head / seconds(tokens, _HEADS, _KV_HEADS, cells)

        try:
            return {
                "generation": operations(1, _CELLS),
                "prompt": operations(_TOKENS, _PROMPT_CELLS),
                "bytes_per_second": cell_bytes * cells / seconds(1, _LONE_HEADS, _LONE_HEADS, cells),
            }
        except _UnsupportedError:
            return None

    def _activation_bytes_per_second(self) -> float:
        """Bytes read and written by norms, sums and products over a ubatch."""
        size = 4 * _COLUMNS * _TOKENS

        def build(context: int) -> int:
            ggml = self._ggml
            first, second = (ggml.ggml_new_tensor_2d(context, _TYPE_F32, _COLUMNS, _TOKENS) for _ in "ab")
            for _ in range(4):
                second = ggml.ggml_add(context, first, ggml.ggml_mul(context, first, second))
                second = ggml.ggml_rms_norm(context, second, 1e-5)
            return int(second)

        return 4 * (3 + 3 + 2) * size / self._run(build)

    def basics(self, *, splits: bool, sends: bool) -> dict[str, float]:
        """What every graph pays on a device, as DeviceSpeed has it; without `splits` those cost nothing, and
        with `sends` the device multiplies with weights that are sent over."""
        # One node with next to no work: a barrier between threads, or a kernel's launch.
        node_seconds = self._run(lambda context: self._chain(context, _EMPTY_NODES)) / _EMPTY_NODES
        return {
            "activation_bytes_per_second": self._activation_bytes_per_second(),
            "node_seconds": node_seconds,
            **(self._graph_split(node_seconds) if splits else _NO_SPLITS),
            **({"sent_bytes_per_second": self._sent_bytes_per_second()} if sends else {}),
        }

    def _graph_split(self, node_seconds: float) -> dict[str, float]:
        """Seconds to hand a device a small input and take a result back, and bytes/s of a large one."""
        seconds = self._round_trip(4 * KIB) - _SMALL_GRAPH * node_seconds
        much = 4 * MIB
        more = max(self._round_trip(much) - self._round_trip(4 * KIB), 1e-9)
        return {"split_seconds": max(_EXCURSION * seconds, 0.0), "split_bytes_per_second": 2 * much / more}

    def _sent_bytes_per_second(self) -> float:
        """From where the engine keeps weights that are to be sent: in pinned memory, if there is any."""
        ggml = self._ggml
        size = min(_SENT_BYTES, self._streamed_bytes) // 4096 * 4096
        pinned = ggml.ggml_backend_dev_host_buffer_type(self._device)
        with self._context() as here, self._context() as there:
            source, sent = (
                ggml.ggml_new_tensor_2d(one, _TYPE_F32, 1024, size // 4096) for one in (here, there)
            )
            with (
                self._allocated(here, pinned or ggml.ggml_backend_cpu_buffer_type()),
                self._allocated(there, self._plain),
            ):
                data = Node.from_address(source).data
                return size / self._time(lambda: ggml.ggml_backend_tensor_set(sent, data, 0, size))

    # -- graphs ----------------------------------------------------------------------------------

    def _chain(self, context: int, nodes: int) -> int:
        """Small nodes of the kinds that a layer has many of, each waiting for the node before."""
        ggml = self._ggml
        weight = ggml.ggml_new_tensor_2d(context, _TYPE_F32, 64, 64)
        node = other = ggml.ggml_new_tensor_2d(context, _TYPE_F32, 64, 1)
        for index in range(nodes):
            if index % 4 == 0:
                node = ggml.ggml_rms_norm(context, node, 1e-5)
            elif index % 4 == 1:
                node = ggml.ggml_add(context, node, other)
            else:
                node = ggml.ggml_mul_mat(context, weight, node)
        return int(node)

    def _round_trip(self, size: int) -> float:
        data = ctypes.create_string_buffer(size)
        result = ctypes.create_string_buffer(size)
        with self._context() as context:
            graph = self._ggml.ggml_new_graph(context)
            given = self._ggml.ggml_new_tensor_2d(context, _TYPE_F32, 1024, size // 4096)
            taken = self._ggml.ggml_rms_norm(context, given, 1e-5)
            for node in (taken, self._chain(context, _SMALL_GRAPH - 1)):
                self._ggml.ggml_build_forward_expand(graph, node)

            def trip() -> None:
                self._ggml.ggml_backend_tensor_set(given, data, 0, size)
                self._ggml.ggml_backend_graph_compute(self._backend, graph)
                self._ggml.ggml_backend_tensor_get(taken, result, 0, size)

            with self._allocated(context, self._plain):
                return self._time(trip, before=_pause)

    def _run(self, build: Callable[[int], int]) -> float:
        """Seconds of the graph that leads to the tensor which `build` returns."""
        with self._context() as context:
            graph = self._ggml.ggml_new_graph(context)
            result = build(context)
            if not self._ggml.ggml_backend_dev_supports_op(self._device, result):
                raise _UnsupportedError
            self._ggml.ggml_build_forward_expand(graph, result)
            with self._allocated(context, self._plain):
                return self._time_graph(graph, result)

    def _multiply(
        self, type_number: int, columns: int, count: int, tokens: int, *, experts: bool
    ) -> float | None:
        """Seconds of multiplying `count` matrices with `tokens` columns, or with `experts` what each token is
        routed to of as many bytes; None where this CPU does not repack the type and it should."""
        # One token reads all there is; many share experts, as they would of a model.
        ggml, used = self._ggml, _EXPERTS_USED if experts else 1
        parts, rows = (_EXPERTS if tokens == _TOKENS else used, _EXPERT_ROWS) if experts else (1, _ROWS)
        routed = struct.pack(f"{used * tokens}i", *(index % parts for index in range(used * tokens)))
        with self._context() as weights_context, self._context() as context:
            weights = [
                ggml.ggml_new_tensor_3d(weights_context, type_number, columns, rows, parts)
                for _ in range(count)
            ]
            graph = ggml.ggml_new_graph(context)
            routes = ggml.ggml_new_tensor_2d(context, _TYPE_I32, used, tokens)
            for weight in weights:
                shape = (1, tokens) if experts else (tokens, 1)
                activations = ggml.ggml_new_tensor_3d(context, _TYPE_F32, columns, *shape)
                if experts:
                    product = ggml.ggml_mul_mat_id(context, weight, activations, routes)
                else:
                    product = ggml.ggml_mul_mat(context, weight, activations)
                ggml.ggml_build_forward_expand(graph, product)
            for buffer_type in extra_buffer_types(ggml, self._device) if self._repack else [self._plain]:
                with self._allocated(weights_context, buffer_type, clear=not self._repack):
                    if ggml.ggml_backend_dev_supports_op(self._device, product):
                        if self._repack:  # setting the data is what repacks it
                            zeros = ctypes.create_string_buffer(ggml.ggml_nbytes(weights[0]))
                            for weight in weights:
                                ggml.ggml_backend_tensor_set(weight, zeros, 0, len(zeros))
                        with self._allocated(context, self._plain):
                            if experts:
                                ggml.ggml_backend_tensor_set(routes, routed, 0, len(routed))
                            return self._time_graph(graph, product)
                for weight in weights:  # to be placed again; ggml_tensor: buffer at 8, data 248, extra 320
                    for offset in (8, 248, 320):
                        ctypes.c_void_p.from_address(weight + offset).value = None
        return None

    @contextlib.contextmanager
    def _allocated(self, context: int, buffer_type: int, *, clear: bool = True) -> Iterator[None]:
        buffer = self._ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise MemoryError
        try:
            if clear:
                self._ggml.ggml_backend_buffer_clear(buffer, 0)
            yield
        finally:
            self._ggml.ggml_backend_buffer_free(buffer)

    @contextlib.contextmanager
    def _context(self) -> Iterator[int]:
        """Room for the structs of a default graph of 2048 nodes; no data lies in it."""
        context = int(self._ggml.ggml_init(InitParameters(4 * MIB, None, True)))
        try:
            yield context
        finally:
            self._ggml.ggml_free(context)

    def _time_graph(self, graph: int, last: int) -> float:
        """Seconds of a graph that ends with the node `last`.

        One of its numbers is read back: an RPC device only gets the request, and thousands would queue up.
        The time that reading takes is subtracted.
        """
        number = ctypes.create_string_buffer(4)

        def wait() -> None:
            self._ggml.ggml_backend_tensor_get(last, number, 0, 4)

        def compute_and_wait() -> None:
            self._ggml.ggml_backend_graph_compute(self._backend, graph)
            wait()

        seconds = self._time(compute_and_wait)
        waits = []
        for _ in range(_CLEAN_RUNS):
            started = time.perf_counter()
            wait()
            waits.append(time.perf_counter() - started)
        return max(seconds - min(waits), 1e-9)

    def _time(self, run: Callable[[], object], before: Callable[[], object] | None = None) -> float:
        run()  # starts threads, touches memory
        seconds: list[float] = []
        clean: list[float] = []
        while len(clean) < _CLEAN_RUNS or sum(clean) < _LEAST_SECONDS:
            if before:
                before()
            before_it, switched = waits(), involuntary_switches()
            started = time.perf_counter()
            run()
            took = time.perf_counter() - started
            seconds.append(took)
            waited = waited_seconds(before_it, waits())
            if not before_it and involuntary_switches() > switched:
                pass  # for how long, this kernel does not say
            elif self._threads == 1:  # nobody waits for it meanwhile
                clean.append(max(took - waited, 1e-9))
            # A device's own threads are not ours to count, and what wakes a worker here gives way to it.
            elif self._threads is None or waited <= _WAITED_SECONDS + _WAITED * took:
                clean.append(took)
            if sum(seconds) > _PATIENCE_SECONDS:
                break
        if not clean:
            raise BusyMachineError
        return median(clean)


def _pause() -> None:
    """Keep this thread busy, as the CPU is while it computes."""
    ends = time.perf_counter() + _PAUSE_SECONDS
    while time.perf_counter() < ends:
        pass
