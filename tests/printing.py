"""Libraries that print to stdout; `printing_libraries` in conftest.py gives them to processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["write_printing_libraries"]

# As a library that greets when it is loaded.
_FROM_C = r"""
#include <stdio.h>
#include <unistd.h>

__attribute__((constructor)) static void greet(void) {
    puts("Running Noise 1.16.0: Copyright (c) 2026 from C");
    fflush(stdout);
    if (write(1, "{\"event\": \"done\"}\n", 18) < 0) _exit(9);
}
"""
# Python runs it at its start, before anything of ours. Not only lines: what ends without one would spoil the
# line that follows it. The thread is a daemon, and prints from both while the process works.
_FROM_PYTHON = r"""
import ctypes, os, sys, threading, time

libc = ctypes.CDLL(None)

def print_all(when):
    print("noise from Python", when, flush=True)
    sys.stdout.write('{"event": "error", "kind": "noise"}\nand half a line')
    sys.stdout.flush()
    os.write(1, b"noise by write\n{")
    libc.puts(b"noise from C")
    libc.fflush(None)

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if sys.stdout is not None and not name.startswith(("encodings", "_")):
            print("importing", name, flush=True)

def go_on():
    for _ in range(400):
        time.sleep(0.005)
        print_all("meanwhile")

print_all("at its start")
sys.meta_path.insert(0, Finder)
threading.Thread(target=go_on, daemon=True).start()
"""


def write_printing_libraries(folder: Path) -> dict[str, str]:
    """Writes them; returns the environment in which every program has them."""
    (folder / "sitecustomize.py").write_text(_FROM_PYTHON)
    source, library = folder / "noise.c", folder / "noise.so"
    source.write_text(_FROM_C)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    return {"PYTHONPATH": str(folder), "LD_PRELOAD": str(library)}
