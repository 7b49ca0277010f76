"""Says which instruction sets the engine was compiled for, in a process that may die of it.

Called with `LIBRARY NAME…`, it answers those names for which `ggml_cpu_has_NAME` says yes.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from memfit.errors import EngineError
from memfit.processes.child import Parent, answer


def _built_kernels(_: Parent) -> dict[str, Any]:
    path, *names = sys.argv[1:]
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise EngineError(str(error)) from None
    library.ggml_cpu_init()  # computes tables with the instructions that the library was built for
    return {"names": [name for name in names if getattr(library, f"ggml_cpu_has_{name}")()]}


if __name__ == "__main__":
    sys.exit(answer(_built_kernels))
