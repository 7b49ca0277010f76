"""Memory that cannot go to swap, in a process of its own, whose limits the test decides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memfit.units import KIB

_HEADING = "Filename\tType\tSize\tUsed\tPriority\n"
_SWAP = "/swapfile\tfile\t1048576\t0\t-2\n"
# Locks twice 64 KiB; where there is no privilege, under a limit of 96 KiB that may be raised from 64.
_LOCK = """
import ctypes, os, resource, sys
from pathlib import Path
from memfit.hardware.disk_speed import own_memory
from memfit.memory import locked
from memfit.memory.process_memory import process_status
locked._SWAPS = Path(sys.argv[1])
before = process_status().locked_bytes
resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 96 << 10))
if sys.argv[2] == "nobody":
    os.setuid(65534)
for _ in range(2):
    memory = own_memory(64 << 10)
    print(locked.lock_memory(ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory)))
    globals().setdefault("kept", []).append(memory)
print(process_status().locked_bytes - before)
"""


def _lock(swaps: Path, user: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", _LOCK, str(swaps), user], capture_output=True, text=True, timeout=60
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("only root can become nobody")
    assert done.returncode == 0, done.stderr
    return [int(line) // KIB for line in done.stdout.split()]


@pytest.mark.parametrize("text", [_HEADING, None])
def test_without_swap_nothing_is_locked(tmp_path: Path, text: str | None) -> None:
    swaps = tmp_path / "swaps"
    if text:
        swaps.write_text(text)
    assert _lock(swaps, "self") == [0, 0, 0]


def test_as_far_as_the_limit_goes(tmp_path: Path) -> None:
    swaps = Path("/dev/shm") / f"memfit-test-swaps-{tmp_path.parent.name}"  # nobody may read it there
    swaps.write_text(_HEADING + _SWAP)
    try:
        assert _lock(swaps, "nobody") == [64, 32, 96]
    finally:
        swaps.unlink()
