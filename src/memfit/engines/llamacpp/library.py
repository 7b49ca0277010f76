"""The C library as the worker sees it: loaded without its Python package, checked, and with the functions
that Python lacks.

Only worker processes import this: a failed assertion inside ggml aborts the process it lives in.

The pinned low-level module (`llama_cpp.llama_cpp`) is imported under a stub parent package, because
the real package's `__init__` imports numpy, jinja2 and diskcache: 39 MiB instead of 16.
Functions that are C++, or return structures, have no Python binding; ctypes calls them here: the memory
breakdown, the graph of a reserved batch with its scheduler, the model's tensors, and the size of the CPU
backend's work buffer for a graph.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfit.engines.llamacpp.c_functions import BACKENDS, BASE, LLAMA, RPC, InitParameters, declare
from memfit.engines.llamacpp.graph import Node, nodes_of, read_graph
from memfit.errors import EngineError, EngineMissingError
from memfit.memory.estimate import RAM
from memfit.units import MIB

__all__ = ["ENGINE_VERSION", "Breakdown", "Library", "load_library"]

ENGINE_VERSION = "0.3.36"
_LLAMA_VERSION = b"0.5.0"  # builds from a plain source tree add "-dev"
_INSTALL = (
    'CMAKE_ARGS="-DGGML_RPC=ON -DLLAVA_BUILD=OFF" '
    f"pip install --no-cache-dir llama-cpp-python=={ENGINE_VERSION}"
)


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Bytes that one context and its model hold in one buffer type ("CPU", "CPU_REPACK", …)."""

    device: int | None  # the address of the device whose own memory it is; None: in RAM
    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int


_POINTER = ctypes.c_void_p
_TYPES = 43  # GGML_TYPE_COUNT of the pinned engine
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_SCRATCH_ROW = 1024  # numbers
_GPU_DEVICES = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU


class _GraphPlan(ctypes.Structure):
    """ggml's `ggml_cplan` (ggml-cpu.h); only the first field is read."""

    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
    )


class Library:
    """The low-level module as `api`, and the functions it lacks."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.is_muted = False  # its log, while it is made to fail
        folder = Path(api._base_path)
        # Already loaded as dependencies of libllama: these calls only return their handles.
        self.ggml_base = ctypes.CDLL(str(_library_file(folder, "ggml-base")))
        self.ggml_cpu = ctypes.CDLL(str(_library_file(folder, "ggml-cpu")))
        self.ggml = ctypes.CDLL(str(_library_file(folder, "ggml")))

        self._folder = folder
        functions = declare(api._lib, LLAMA)
        self._memory_breakdown, self._graph_reserve, self._scheduler, self._tensor_map = functions
        declare(self.ggml_base, BASE)
        declare(self.ggml, BACKENDS)
        self.ggml_base.ggml_init.argtypes = [InitParameters]
        self.ggml_base.ggml_init.restype = ctypes.c_void_p
        self.ggml_cpu.ggml_backend_cpu_set_n_threads.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.ggml_cpu.ggml_graph_plan.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        self.ggml_cpu.ggml_graph_plan.restype = _GraphPlan
        names = {self.ggml_base.ggml_type_name(number): number for number in range(_TYPES)}
        self.type_numbers = {name.decode().upper(): number for name, number in names.items() if name}

    def log(self, *, verbose: bool) -> None:
        def write(level: int, text: bytes, _: object) -> None:
            if (verbose or level == _LOG_ERROR) and not self.is_muted:
                sys.stderr.buffer.write(text)
                sys.stderr.buffer.flush()

        self._log = self.api.llama_log_callback(write)  # C does not keep it alive
        self.api.llama_log_set(self._log, None)

    @property
    def rpc(self) -> Any:
        """The RPC backend's library, loaded when first asked for.

        Raises:
            EngineMissingError: the engine was built without it.
        """
        try:
            rpc = ctypes.CDLL(str(_library_file(self._folder, "ggml-rpc")))
        except OSError as error:
            raise EngineMissingError(
                f"the engine was built without RPC: {error}; rebuild it with: {_INSTALL}"
            ) from error
        declare(rpc, RPC)
        return rpc

    def memory_breakdown(self, context: int) -> dict[str, Breakdown]:
        """Bytes per buffer type name, as the engine itself counts them.

        `llama_get_memory_breakdown` returns a std::map by value. By the Itanium ABI the caller passes
        48 bytes as a hidden first argument; libstdc++ keeps the red-black tree's root at 16 and its
        count at 40. A node holds left at 16, right at 24, the key (buffer type) at 32, and the value's
        three size_t at 40. The map's few nodes are not freed: nothing here knows its destructor.
        """
        header = (ctypes.c_size_t * 6)()
        self._memory_breakdown(header, context)
        found: dict[str, Breakdown] = {}
        pending = [header[2]]
        while pending:
            node = pending.pop()
            if not node:
                continue
            left, right, key, weights, kv_cache, compute = (ctypes.c_size_t * 6).from_address(node + 16)
            pending += [left, right]
            found[self.ggml_base.ggml_backend_buft_name(key).decode()] = Breakdown(
                device=self._device_of(key),
                weights_bytes=weights,
                kv_cache_bytes=kv_cache,
                compute_bytes=compute,
            )
        assert len(found) == header[5], "the walk must visit as many nodes as the map counts"
        return found

    def _device_of(self, buffer_type: int) -> int | None:
        """The GPU whose own memory a buffer type is; pinned host memory and a CPU's types are RAM."""
        ggml = self.ggml_base
        device = ggml.ggml_backend_buft_get_device(buffer_type)
        if not device or ggml.ggml_backend_buft_is_host(buffer_type):
            return None
        return int(device) if ggml.ggml_backend_dev_type(device) in _GPU_DEVICES else None

    def work_buffer_bytes(
        self, context: int, *, tokens: int, sequences: int, outputs: int, threads: Sequence[int]
    ) -> list[int]:
        """Bytes that the CPU backend will allocate as scratch for a ubatch of `tokens`, with each of
        these numbers of threads, by the engine's own graph planner."""
        graph = self._split_graph(context, tokens, sequences, outputs)
        return [int(self.ggml_cpu.ggml_graph_plan(graph, one, None).work_size) for one in threads]

    def touch_work_buffer(self, context: int, size: int) -> None:
        """Have the CPU backend allocate so many bytes of scratch now, and write them all.

        A product of matrices takes scratch for what it multiplies with, converted to its weights' type: here
        two bytes for each number of as many equal columns as it takes, times a single row of weights.

        Raises:
            EngineError: there is no memory for them.
        """
        if not size:
            return
        ggml, scheduler = self.ggml_base, self._scheduler(context)
        cpu = ggml.ggml_backend_sched_get_backend(
            scheduler, ggml.ggml_backend_sched_get_n_backends(scheduler) - 1
        )
        columns = -(-size // (2 * _SCRATCH_ROW))
        room = ggml.ggml_init(InitParameters(MIB, None, True))
        weights = ggml.ggml_new_tensor_2d(room, self.type_numbers["F16"], _SCRATCH_ROW, 1)
        column = ggml.ggml_new_tensor_2d(room, self.type_numbers["F32"], _SCRATCH_ROW, 1)
        repeated = Node.from_address(column)
        repeated.ne[1], repeated.nb[1] = columns, 0  # all are the same numbers
        graph = ggml.ggml_new_graph(room)
        ggml.ggml_build_forward_expand(graph, ggml.ggml_mul_mat(room, weights, column))
        buffer = ggml.ggml_backend_alloc_ctx_tensors(room, cpu)
        if not buffer:
            raise EngineError("no memory is left for the engine's work buffer")
        ggml.ggml_backend_buffer_clear(buffer, 0)
        self.ggml_cpu.ggml_backend_cpu_set_n_threads(cpu, 1)  # each pass sets its own
        ggml.ggml_backend_graph_compute(cpu, graph)
        ggml.ggml_backend_buffer_free(buffer)
        ggml.ggml_free(room)

    def _split_graph(self, context: int, tokens: int, sequences: int, outputs: int) -> int:
        """The graph of `tokens`, some of them `outputs`, over a full context, divided between devices;
        nothing is allocated.

        Its scheduler keeps the division until the next graph. Dividing a graph twice would corrupt it: its
        nodes already read from copies, in memory that the second division uses again.
        """
        memory = self.api.llama_get_memory(context)
        full = self._full_memory(memory) if memory else None
        graph = self._graph_reserve(context, tokens, sequences, outputs, full, True, None)
        if full:
            # llama_memory_context_i's deleting destructor is the second entry of its virtual table.
            ctypes.CFUNCTYPE(None, _POINTER)(_virtual(full, 1))(full)
        if not graph:
            raise EngineError("the engine could not build its graph")
        return int(graph)

    @staticmethod
    def _full_memory(memory: int) -> int:
        """`llama_memory_i::init_full()`: a cache as if every cell were in use.

        The fourth entry of the virtual table, after two destructors and init_batch. It returns a
        unique_ptr, for which the caller passes room as a hidden first argument.
        """
        room = ctypes.c_void_p()
        call = ctypes.CFUNCTYPE(_POINTER, _POINTER, _POINTER)(_virtual(memory, 3))
        call(ctypes.addressof(room), memory)
        assert room.value, "it never returns nothing"
        return room.value

    def read_graph(
        self, context: int, *, tokens: int, sequences: int, outputs: int, devices: Sequence[int]
    ) -> dict[str, Any]:
        """What a pass of `tokens` computes, and on which of `devices` (addresses): see graph.py."""
        graph = self._split_graph(context, tokens, sequences, outputs)
        ggml, scheduler = self.ggml_base, self._scheduler(context)
        numbers: dict[int, int] = {}  # by backend

        def device_of(node: Node) -> int:
            backend = ggml.ggml_backend_sched_get_tensor_backend(scheduler, ctypes.addressof(node))
            if backend not in numbers:
                device = backend and ggml.ggml_backend_get_device(backend)
                numbers[backend] = 1 + devices.index(device) if device in devices else RAM
            return numbers[backend]

        return read_graph(ggml, graph, 1 + len(devices), device_of)

    def touch_compute_buffers(self, context: int) -> int:
        """Write every byte of a context's compute buffers, and return how many there are.

        They are allocated untouched, and a shallow context reaches only part of them; their content
        never outlives a graph. Found in the scheduler's own structures (ggml-backend.cpp, ggml-alloc.c):
        ggml_backend_sched holds its allocator at 264, ggml_gallocr its list of buffers at 8 and their
        number at 24, and each of them is an array of 16 chunks.
        """
        ggml = self.ggml_base
        allocator = ctypes.c_void_p.from_address(self._scheduler(context) + 264).value
        assert allocator is not None, "a context has reserved its graphs"
        count = ctypes.c_int.from_address(allocator + 24).value
        listed = ctypes.c_void_p.from_address(allocator + 8).value
        lists = {one for one in (ctypes.c_void_p * count).from_address(listed or 0) if one}
        buffers = {one for each in lists for one in (ctypes.c_void_p * 16).from_address(each) if one}
        for buffer in buffers:
            ggml.ggml_backend_buffer_clear(buffer, 0)
        return sum(ggml.ggml_backend_buffer_get_size(buffer) for buffer in buffers)

    def model_tensors(self, model: int) -> list[tuple[str, int]]:
        """Name and address of every tensor that the engine uses; a tied table may be there twice.

        A std::vector (begin, end) of pairs: a std::string (address and length first, 32 bytes) and a pointer.
        """
        begin, end = (ctypes.c_size_t * 2).from_address(self._tensor_map(model))
        found = []
        for pair in range(begin, end, 40):
            text, length = (ctypes.c_size_t * 2).from_address(pair)
            address = ctypes.c_size_t.from_address(pair + 32).value
            found.append((ctypes.string_at(text, length).decode(), address))
        return found

    def allow_contexts(self, model: int) -> None:
        """Let contexts of a model that was built without memory allocate theirs.

        llama_model: a virtual table's pointer, two 32-bit enums, a std::string of 32 bytes, and
        llama_hparams, which begins with the flags vocab_only and no_alloc.

        Raises:
            EngineError: the flags are not there.
        """
        flags = (ctypes.c_uint8 * 2).from_address(model + 48)
        if list(flags) != [0, 1]:
            raise EngineError(f"the engine's model is laid out differently: {list(flags)}")
        flags[1] = 0

    def graph_nodes(self, context: int, *, tokens: int, sequences: int, outputs: int) -> list[Node]:
        """The nodes of a pass, in order of computation. Valid until the next question."""
        return list(nodes_of(self.ggml_base, self._split_graph(context, tokens, sequences, outputs)))


def _virtual(instance: int, index: int) -> int:
    """The address of an entry in a C++ object's virtual table."""
    table = ctypes.c_size_t.from_address(instance).value
    return ctypes.c_size_t.from_address(table + ctypes.sizeof(ctypes.c_size_t) * index).value


def load_library(*, verbose: bool = False) -> Library:
    """Import the engine and prove that it is the build whose structures are known here. It logs its errors to
    stderr; with `verbose`, all that it says.

    Raises:
        EngineMissingError: not installed, another version, or structures laid out differently.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise EngineMissingError(f"the engine is not installed; install it with: {_INSTALL}")
    stub = types.ModuleType("llama_cpp")
    stub.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = stub
    try:
        api = importlib.import_module("llama_cpp.llama_cpp")
        library = Library(api)
        _check_abi(api)
        library.log(verbose=verbose)
    except (OSError, RuntimeError, AttributeError) as error:
        raise EngineMissingError(
            f"the installed engine is not llama-cpp-python {ENGINE_VERSION}: {error}; "
            f"rebuild it with: {_INSTALL}"
        ) from error
    return library


def _check_abi(api: Any) -> None:
    """Version strings and default parameters: a shifted structure shows in the defaults."""
    # Its own text says it; importlib.metadata would cost the worker 3 MiB.
    package = (Path(api.__file__).parent / "__init__.py").read_text()
    if f'__version__ = "{ENGINE_VERSION}"' not in package:
        raise RuntimeError("its version is another")
    if not api.llama_version().startswith(_LLAMA_VERSION):
        raise RuntimeError(f"llama.cpp says version {api.llama_version()!r}, not {_LLAMA_VERSION!r}")
    model, context = api.llama_model_default_params(), api.llama_context_default_params()
    defaults: tuple[tuple[Any, str, Any], ...] = (
        (model, "n_gpu_layers", -1),
        (model, "load_mode", api.LLAMA_LOAD_MODE_AUTO),
        (model, "use_extra_bufts", True),
        (model, "no_host", False),
        (model, "no_alloc", False),
        (context, "n_ctx", 512),
        (context, "n_batch", 2048),
        (context, "n_ubatch", 512),
        (context, "flash_attn_type", api.LLAMA_FLASH_ATTN_TYPE_AUTO),
        (context, "type_v", api.GGML_TYPE_F16),
        (context, "offload_kqv", True),
        (context, "op_offload", True),
        (context, "swa_full", True),
        (context, "kv_unified", False),
        (context, "n_samplers", 0),
    )
    wrong = [
        f"{name} is {found}, not {expected}"
        for structure, name, expected in defaults
        if (found := getattr(structure, name)) != expected
    ]
    if wrong:
        raise RuntimeError("its parameter structures differ: " + "; ".join(wrong))


def _library_file(folder: Path, name: str) -> Path:
    for candidate in (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll"):
        if (folder / candidate).exists():
            return folder / candidate
    raise OSError(f"{folder} holds no {name} library")
