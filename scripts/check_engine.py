"""Say whether the installed engine is the build that memfit needs on this machine.

    python scripts/check_engine.py 0.3.36

A wheel from pip's cache, or a `.venv` that moved to another computer, may lack RPC or hold kernels
for another CPU: too new ones end in "Illegal instruction", too old ones cost half of the speed.
Kernels that the compiler spoilt end so, too; a product of two matrices is tried for that.
Prints one sentence; exit code 0: right, 1: cannot be used, 2: works, but slower than it could.
Knows nothing of memfit itself, so that it runs before memfit is installed.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import signal
import struct
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

# The kernel's name for a CPU feature → ggml's. Both are compile-time facts of libggml-cpu.
_FEATURES = {
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "bmi2": "bmi2",
    "avx512f": "avx512",
    "avx512vbmi": "avx512_vbmi",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "asimddp": "dotprod",
    "i8mm": "matmul_int8",
    "sve": "sve",
}
# Compilers older than the CPU do not know the rest, so their absence is nobody's mistake.
_EXPECTED = {"avx", "avx2", "fma", "f16c", "avx512", "dotprod"}


def main() -> int:
    if sys.argv[1:2] == ["--features"]:
        return _print_features(Path(sys.argv[2]))
    if sys.argv[1:2] == ["--multiply"]:
        return _multiply(Path(sys.argv[2]))
    code, sentence = _check(wanted_version=sys.argv[1])
    print(sentence)
    return code


def _check(wanted_version: str) -> tuple[int, str]:
    try:
        version = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return 1, "the engine (llama-cpp-python) is not installed"
    if version != wanted_version:
        return 1, f"the engine is llama-cpp-python {version}, and memfit needs {wanted_version}"
    spec = util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return 1, "the engine is installed only in part: there is no package llama_cpp"
    folder = Path(spec.origin).parent / "lib"
    for name in ("libllama.so", "libggml-cpu.so", "libggml-rpc.so"):
        if not (folder / name).exists():
            return 1, f"the engine was compiled without {name}"
    return _check_kernels(folder / "libggml-cpu.so")


def _check_kernels(library: Path) -> tuple[int, str]:
    # In a child: a library for another CPU may end its process while it is being loaded.
    child = subprocess.run(
        [sys.executable, __file__, "--features", str(library)], capture_output=True, text=True
    )
    if child.returncode == -signal.SIGILL:
        return 1, "the engine was compiled for another CPU (illegal instruction)"
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return 1, f"the engine's library cannot be loaded: {reason}"
    compiled_in = set(json.loads(child.stdout))
    here = {_FEATURES[flag] for flag in _cpu_flags() if flag in _FEATURES}
    if not here:
        return 0, "the engine is there; this CPU's features are unknown"
    if beyond := sorted(compiled_in - here):
        return 1, f"the engine was compiled for another CPU: it uses {', '.join(beyond)}"
    if not _multiplies(library):
        return 1, "the engine's kernels fail on this CPU, which its compiler should have made right"
    if unused := sorted((here & _EXPECTED) - compiled_in):
        return 2, f"the engine makes no use of this CPU's {', '.join(unused)}"
    return 0, "the engine is there and fits this CPU"


def _print_features(library: Path) -> int:
    cpu = ctypes.CDLL(str(library))
    print(json.dumps([name for name in _FEATURES.values() if getattr(cpu, f"ggml_cpu_has_{name}")()]))
    return 0


def _multiplies(library: Path) -> bool:
    child = subprocess.run([sys.executable, __file__, "--multiply", str(library)], capture_output=True)
    return child.returncode == 0


def _multiply(library: Path) -> int:
    """In each of the CPU's own layouts, columns of ones by Q8_0 rows of ones: 0 where every sum is right."""
    base = ctypes.CDLL(str(library.with_name("libggml-base.so")), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(library))
    address = ctypes.c_void_p
    for holder, names in (
        (base, "ggml_init ggml_new_tensor_2d ggml_mul_mat ggml_new_graph ggml_get_data"),
        (base, "ggml_backend_alloc_ctx_tensors_from_buft ggml_backend_reg_dev_get"),
        (base, "ggml_backend_reg_get_proc_address"),
        (cpu, "ggml_backend_cpu_reg ggml_backend_cpu_init"),
    ):
        for name in names.split():
            getattr(holder, name).restype = address

    registry = address(cpu.ggml_backend_cpu_reg())
    found = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    device = address(base.ggml_backend_reg_dev_get(registry, ctypes.c_size_t(0)))
    layouts = ctypes.CFUNCTYPE(ctypes.POINTER(address), address)(found)(device) if found else []
    backend = address(cpu.ggml_backend_cpu_init())
    for layout in itertools.takewhile(bool, layouts or ()):
        held = address(base.ggml_init(_Memory(2**20, None, True)))
        weights = address(base.ggml_new_tensor_2d(held, _Q8_0, _LONG(_WIDTH), _LONG(_ROWS)))
        base.ggml_backend_alloc_ctx_tensors_from_buft(held, address(layout))
        if not address.from_address(weights.value + _EXTRA).value:  # it does not take this type
            continue
        ones = (struct.pack("<e", 1.0) + b"\1" * 32) * (_WIDTH // 32 * _ROWS)
        base.ggml_backend_tensor_set(weights, ones, ctypes.c_size_t(0), ctypes.c_size_t(len(ones)))
        computed = address(base.ggml_init(_Memory(2**24, None, False)))
        columns = address(base.ggml_new_tensor_2d(computed, 0, _LONG(_WIDTH), _LONG(_COLUMNS)))
        values = (ctypes.c_float * (_WIDTH * _COLUMNS)).from_address(base.ggml_get_data(columns))
        values[:] = [1.0] * len(values)
        product = address(base.ggml_mul_mat(computed, weights, columns))
        graph = address(base.ggml_new_graph(computed))
        base.ggml_build_forward_expand(graph, product)
        base.ggml_backend_graph_compute(backend, graph)
        sums = (ctypes.c_float * (_ROWS * _COLUMNS)).from_address(base.ggml_get_data(product))
        if any(abs(one - _WIDTH) > _WIDTH / 50 for one in sums):
            return 1
    return 0


class _Memory(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_Q8_0 = 8  # ggml_type
_EXTRA = 320  # of ggml_tensor: how its layout multiplies
_WIDTH, _ROWS, _COLUMNS = 256, 64, 40  # whole tiles, and more than one of them
_LONG = ctypes.c_int64


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


if __name__ == "__main__":
    sys.exit(main())
