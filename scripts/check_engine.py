"""Say whether the installed engine is the build that memfit needs on this machine.

    python scripts/check_engine.py 0.3.36

A wheel from pip's cache, or a `.venv` that moved to another computer, may lack RPC or hold kernels
for another CPU: too new ones end in "Illegal instruction", too old ones cost half of the speed.
Prints one sentence; exit code 0: right, 1: cannot be used, 2: works, but slower than it could.
Knows nothing of memfit itself, so that it runs before memfit is installed.
"""

from __future__ import annotations

import ctypes
import json
import signal
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
    if unused := sorted((here & _EXPECTED) - compiled_in):
        return 2, f"the engine makes no use of this CPU's {', '.join(unused)}"
    return 0, "the engine is there and fits this CPU"


def _print_features(library: Path) -> int:
    cpu = ctypes.CDLL(str(library))
    print(json.dumps([name for name in _FEATURES.values() if getattr(cpu, f"ggml_cpu_has_{name}")()]))
    return 0


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


if __name__ == "__main__":
    sys.exit(main())
