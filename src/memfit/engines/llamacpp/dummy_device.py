"""A device of our own that the engine takes for a real one, and that never computes: it stands for a remote
device or a profile's GPU while bytes are counted. Planning then neither occupies a remote machine nor needs
a GPU that is not here.

Made of ggml's backend interface (ggml-backend-impl.h, version 2), with ctypes functions for what the
engine asks: how a tensor is padded, which operations the device supports, which ones it takes over though
their weights lie in RAM. A simulating worker allocates no buffers but those of recurrent layers' states;
they have a size and no memory.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memfit.engines.llamacpp.c_functions import DeviceProperties
from memfit.engines.llamacpp.graph import Node
from memfit.errors import EngineError
from memfit.hardware.machine import is_remote
from memfit.planner.speed import OP_OFFLOAD_TOKENS

__all__ = ["GPU_TYPE", "DummyDevice"]

GPU_TYPE = 1  # ggml_backend_dev_type
_INTERFACE_VERSION = 2
_CUDA_ROW = 512  # numbers that CUDA pads quantized rows to
_F16, _F16_BYTES = 1, 2  # ggml_type
_BASE = 1 << 40  # an address of nothing, where buffers begin
_PLENTY = 1 << 50  # bytes of memory: what fits is the planner's to say
_P = ctypes.c_void_p


@dataclass(frozen=True, kw_only=True)
class _Kind:
    alignment: int  # bytes, of tensors in a buffer
    offloads: bool  # multiplies many tokens with weights that lie in RAM
    is_cuda: bool = False  # or HIP, the same code


_REMOTE = _Kind(alignment=32, offloads=False)  # behind RPC: a CPU's memory, and no offloading
_CUDA = _Kind(alignment=128, offloads=True, is_cuda=True)
_OTHER = _Kind(alignment=64, offloads=True)  # the most that Vulkan's drivers ask for


class _BufferFunctions(ctypes.Structure):
    """ggml_backend_buffer_i: free_buffer, get_base, init_tensor, memset_tensor, set_tensor, get_tensor,
    set_tensor_2d, get_tensor_2d, cpy_tensor, clear, reset."""

    _fields_ = (("functions", ctypes.c_size_t * 11),)


class DummyDevice:
    """`address` is a `ggml_backend_dev_t`, valid as long as this object lives.

    Raises:
        EngineError: the engine's backend interface has another version.
    """

    def __init__(self, ggml: Any, cpu: int, name: str) -> None:
        """`ggml` is libggml-base, `cpu` its CPU device. `name` is a remote device's "HOST:PORT", or
        "profile:cuda0" and the like for a GPU that CUDA or another backend would run."""
        version = ctypes.c_int.from_address(ggml.ggml_backend_dev_backend_reg(cpu)).value
        if version != _INTERFACE_VERSION:
            raise EngineError(f"the engine's devices are of version {version}, not {_INTERFACE_VERSION}")
        self._ggml = ggml
        self._kind = _REMOTE if is_remote(name) else _CUDA if ":cuda" in name else _OTHER
        self._operation = functools.cache(lambda number: ggml.ggml_op_name(number).decode())
        self._name = ctypes.create_string_buffer(name.encode())
        self._kept: list[Any] = [self._name]  # C holds no references
        self.address = self._device()

    # -- ggml's structures: tables of functions, then what they belong to ----------------------------

    def _device(self) -> int:
        name = self._function(_P, lambda _: ctypes.addressof(self._name), 1)
        # api_version; get_name, get_device_count, get_device, get_proc_address; context
        registry = self._table(_INTERFACE_VERSION, name, 0, 0, 0, 0)
        device = self._table(*[0] * 17)
        address = ctypes.addressof(device)
        buffer_type = self._buffer_type(name, address)
        # guid; get_name, free, and 14 that only computing needs; device, context
        free = self._function(None, lambda _: None, 1)
        backend = self._table(0, name, free, *[0] * 14, address, 0)
        functions = (
            name,  # get_name
            name,  # get_description
            self._function(None, _memory, 3),
            self._function(ctypes.c_int, lambda _: GPU_TYPE, 1),
            self._function(None, self._properties, 2),
            self._function(_P, lambda *_: ctypes.addressof(backend), 2),  # init_backend
            self._function(_P, lambda _: buffer_type, 1),  # get_buffer_type
            0,  # get_host_buffer_type
            0,  # buffer_from_host_ptr
            self._function(ctypes.c_bool, lambda *_: True, 2),  # supports_op
            self._function(ctypes.c_bool, lambda _, of: of == buffer_type, 2),  # supports_buft
            self._function(ctypes.c_bool, self._takes_over, 2) if self._kind.offloads else 0,  # offload_op
        )
        device[: len(functions)] = functions
        device[15] = ctypes.addressof(registry)
        return address

    def _buffer_type(self, name: int, device: int) -> int:
        """Its buffers have a size, and no memory."""
        base = self._function(_P, lambda _: _BASE, 1)
        clear = self._function(None, lambda *_: None, 2)
        functions = _BufferFunctions((0, base, *[0] * 7, clear, 0))
        make = self._ggml.ggml_backend_buffer_init
        make.restype, make.argtypes = _P, (_P, _BufferFunctions, _P, ctypes.c_size_t)

        def alloc_buffer(buffer_type: int, size: int | None) -> int | None:
            made: int | None = make(buffer_type, functions, None, size or 0)
            return made

        # get_name, alloc_buffer, get_alignment, get_max_size, get_alloc_size, is_host; device, context
        table = self._table(
            name,
            self._function(_P, alloc_buffer, 2),
            self._function(ctypes.c_size_t, lambda _: self._kind.alignment, 1),
            0,
            self._function(ctypes.c_size_t, self._alloc_size, 2),
            0,
            device,
            0,
        )
        return ctypes.addressof(table)

    def _table(self, *words: int) -> Any:
        table = (ctypes.c_size_t * len(words))(*words)
        self._kept.append(table)
        return table

    def _function(self, result: Any, function: Callable[..., Any], arguments: int) -> int:
        """The address of a C function whose arguments are pointers."""
        made = ctypes.CFUNCTYPE(result, *[_P] * arguments)(function)
        self._kept.append(made)
        return ctypes.cast(made, _P).value or 0

    # -- what the engine asks ------------------------------------------------------------------------

    def _properties(self, _: int, filled: int) -> None:
        found = DeviceProperties.from_address(filled)
        for field in (DeviceProperties.name, DeviceProperties.description):  # addresses that stay valid
            _P.from_address(filled + field.offset).value = ctypes.addressof(self._name)
        found.free_bytes = found.total_bytes = _PLENTY
        found.type = GPU_TYPE

    def _alloc_size(self, _: int, address: int) -> int:
        """Bytes of a tensor in a buffer (CUDA's are in ggml-cuda.cu, `get_alloc_size`)."""
        node, size = Node.from_address(address), int(self._ggml.ggml_nbytes(address))
        if not self._kind.is_cuda:
            return size
        if self._operation(node.op) == "FLASH_ATTN_EXT":  # copies of a quantized cache as F16
            for source in (Node.from_address(one) for one in node.src[1:3]):
                if source.type != _F16:
                    size = _padded(size, self._kind.alignment) + _F16_BYTES * source.elements
        rest = node.ne[0] % _CUDA_ROW
        if rest and self._ggml.ggml_blck_size(node.type) > 1:
            size += self._ggml.ggml_row_size(node.type, _CUDA_ROW - rest)
        return size

    def _takes_over(self, _: int, address: int) -> bool:
        """As CUDA and Vulkan do (`get_op_batch_size`)."""
        node = Node.from_address(address)
        name = self._operation(node.op)
        if name == "GET_ROWS":
            return False
        if name == "MUL_MAT":
            tokens = node.ne[1]
        elif name in ("MUL_MAT_ID", "ROPE", "ROPE_BACK"):
            tokens = node.ne[2]
        else:
            tokens = math.prod(node.ne[1:])
        return bool(tokens >= OP_OFFLOAD_TOKENS)


def _memory(_: int, free: int, total: int) -> None:
    for address in (free, total):
        ctypes.c_size_t.from_address(address).value = _PLENTY


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
