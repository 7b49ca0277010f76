"""Signatures of the engine's functions that its Python binding lacks, for ctypes; by library.

A signature has a letter for the result, then one for each argument: P is a pointer, T a text, I an int, L an
int64, N a uint32, Z a size_t, F a float, B a bool, C a byte, G a GgufParameters; V is no result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

__all__ = [
    "BACKENDS",
    "BASE",
    "LLAMA",
    "RPC",
    "DeviceProperties",
    "GgufParameters",
    "InitParameters",
    "TypeTraits",
    "declare",
]


class GgufParameters(ctypes.Structure):
    """ggml's `gguf_init_params` (gguf.h)."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.POINTER(ctypes.c_void_p)))


_LETTERS: Mapping[str, Any] = {
    "P": ctypes.c_void_p,
    "T": ctypes.c_char_p,
    "I": ctypes.c_int,
    "L": ctypes.c_int64,
    "N": ctypes.c_uint32,
    "Z": ctypes.c_size_t,
    "F": ctypes.c_float,
    "B": ctypes.c_bool,
    "C": ctypes.c_uint8,
    "G": GgufParameters,
    "V": None,
}
BASE = {  # libggml-base
    "VP": "ggml_backend_buffer_free ggml_backend_free ggml_free gguf_free",
    "VPC": "ggml_backend_buffer_clear",
    "VPI": "ggml_backend_buffer_set_usage",
    "VPP": "ggml_build_forward_expand ggml_backend_dev_get_props gguf_add_tensor gguf_set_kv",
    "VPPL": "ggml_fp32_to_bf16_row",
    "VPPP": "ggml_backend_dev_memory",
    "VPPZZ": "ggml_backend_tensor_set ggml_backend_tensor_get",
    "VPT": "gguf_remove_key",
    "VPTI": "gguf_set_tensor_type",
    "VPTN": "gguf_set_val_u32",
    "VPTPZ": "gguf_set_arr_str",
    "VPTT": "gguf_set_val_str",
    "BP": "ggml_backend_buft_is_host ggml_backend_buffer_is_host",
    "BPP": "ggml_backend_dev_supports_op",
    "BPTB": "gguf_write_to_file",
    "LI": "ggml_blck_size",
    "IP": "ggml_backend_dev_type ggml_backend_sched_get_n_backends ggml_graph_n_nodes "
    "ggml_backend_buffer_get_usage",
    "IPP": "ggml_backend_graph_compute",
    "IPPZ": "ggml_backend_tensor_alloc",
    "LP": "gguf_get_n_tensors",
    "LPT": "gguf_find_key",
    "NPL": "gguf_get_val_u32",
    "TPLZ": "gguf_get_arr_str",
    "P": "ggml_backend_cpu_buffer_type gguf_init_empty",
    "PI": "ggml_get_type_traits",
    "PP": "ggml_backend_buft_get_device ggml_backend_dev_buffer_type ggml_backend_get_device "
    "ggml_backend_buffer_get_type ggml_backend_dev_backend_reg ggml_new_graph ggml_get_first_tensor "
    "ggml_backend_dev_host_buffer_type",
    "PPI": "ggml_graph_node ggml_backend_sched_get_backend",
    "PPILL": "ggml_new_tensor_2d",
    "PTG": "gguf_init_from_file",
    "PPILLL": "ggml_new_tensor_3d",
    "PPP": "ggml_backend_sched_get_tensor_backend ggml_backend_alloc_ctx_tensors_from_buft "
    "ggml_backend_alloc_ctx_tensors ggml_get_next_tensor",
    "PPPF": "ggml_rms_norm",
    "PPPIIII": "ggml_permute",
    "PPPP": "ggml_add ggml_mul ggml_mul_mat",
    "PPPPP": "ggml_mul_mat_id",
    "PPT": "ggml_set_name ggml_backend_dev_init ggml_backend_reg_get_proc_address",
    "PPPPPPFFF": "ggml_flash_attn_ext",
    "PPZ": "ggml_backend_reg_dev_get ggml_backend_buft_alloc_buffer",
    "Z": "ggml_tensor_overhead",
    "ZI": "ggml_type_size",
    "ZIPPLLLP": "ggml_quantize_chunk",
    "ZIL": "ggml_row_size",
    "ZP": "ggml_backend_buffer_get_base ggml_backend_buft_get_alignment ggml_backend_buft_get_max_size "
    "ggml_backend_buffer_get_size ggml_nbytes gguf_get_meta_size",
    "ZPL": "gguf_get_tensor_size gguf_get_arr_n",
    "ZPP": "ggml_backend_buft_get_alloc_size",
    "ZZB": "ggml_graph_overhead_custom",
    "TI": "ggml_type_name ggml_op_name",
    "TP": "ggml_get_name ggml_backend_buft_name ggml_backend_dev_name",
}
BACKENDS = {  # libggml, which knows all backends
    "PT": "ggml_backend_dev_by_name",
    "PI": "ggml_backend_dev_by_type",
    "Z": "ggml_backend_dev_count",
    "PZ": "ggml_backend_dev_get",
}
RPC = {  # libggml-rpc
    "PT": "ggml_backend_rpc_add_server",
    "VTTZZP": "ggml_backend_rpc_start_server",
}
LLAMA = {  # libllama: C++, by their mangled names
    "VPP": "_Z26llama_get_memory_breakdownPK13llama_context",
    "PPNNNPBP": "_ZN13llama_context13graph_reserveEjjjPK22llama_memory_context_ibPm",
    "PP": "_ZNK13llama_context9get_schedEv _Z29llama_internal_get_tensor_mapB5cxx11PK11llama_model",
}


class InitParameters(ctypes.Structure):
    """ggml's `ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class DeviceProperties(ctypes.Structure):
    """ggml's `ggml_backend_dev_props`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("free_bytes", ctypes.c_size_t),
        ("total_bytes", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("id", ctypes.c_char_p),
        ("capabilities", ctypes.c_bool * 8),  # five of them
    )


class TypeTraits(ctypes.Structure):
    """ggml's `ggml_type_traits` (ggml.h), as far as it is used."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def declare(library: Any, functions: Mapping[str, str]) -> list[Any]:
    """Give the functions of one library their types, and return them in the table's order."""
    found = []
    for signature, names in functions.items():
        result, *arguments = (_LETTERS[letter] for letter in signature)
        for name in names.split():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            found.append(function)
    return found
