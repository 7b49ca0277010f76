"""Maps libraries in whole pieces of 2 MiB, so that what they hold does not depend on the page cache.

Since Linux 6.18 one fault maps all of a large folio, and a library's folios are large where it was just
installed or read through, small where faults brought it in: torch's hold 243 MB in the one case and 109 in
the other. No flag of a process or a mapping turns that off, so the larger is made to be the rule.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from array import array
from pathlib import Path

__all__ = ["map_libraries_whole"]

_POPULATE_READ = 22  # MADV_POPULATE_READ
_PIECE = (2 << 20) // mmap.PAGESIZE  # pages; the largest folio, aligned within the file
_PRESENT = 1 << 63  # in an entry of pagemap


def map_libraries_whole() -> None:
    """Wherever this process has mapped a page of a library, map the whole piece around it."""
    if sys.platform != "linux" or _kernel() < (6, 18):
        return
    madvise = ctypes.CDLL(None).madvise
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123 - read at places only
        for line in Path("/proc/self/maps").read_text().splitlines():
            addresses, _, offset, _, _, *path = line.split(maxsplit=5)
            if not path or ".so" not in path[0]:
                continue
            start, end = (int(one, 16) // mmap.PAGESIZE for one in addresses.split("-"))
            pages = array("Q", os.pread(pagemap.fileno(), (end - start) * 8, start * 8))
            before = int(offset, 16) // mmap.PAGESIZE % _PIECE  # of its first piece, pages before the mapping
            for edge in range(-before, len(pages), _PIECE):
                low, high = max(edge, 0), min(edge + _PIECE, len(pages))
                if any(entry & _PRESENT for entry in pages[low:high]):
                    address, size = (start + low) * mmap.PAGESIZE, (high - low) * mmap.PAGESIZE
                    madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _POPULATE_READ)


def _kernel() -> tuple[int, ...]:
    return tuple(int(one) for one in os.uname().release.split(".")[:2])
