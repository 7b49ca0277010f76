"""A RAM cap that the kernel keeps (`--hard-cap`): memfit's processes in a memory cgroup of their own.

The group lies below this process's own, so existing limits still hold. The kernel counts what is allocated
inside, with page cache and its own memory. What a process held before it came in stays counted where it was,
and so do pages of files that were cached before, libraries among them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from pathlib import Path

from memfit.errors import UsageError, WrongValueError
from memfit.hardware.cgroup import memory_group
from memfit.units import MIB

__all__ = ["HardCap"]

# version of the interface → limit, limit of swap, peak, events
_FILES = {
    1: (
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.oom_control",
    ),
    2: ("memory.max", "memory.swap.max", "memory.peak", "memory.events"),
}
_KERNEL_BYTES = 4 * MIB  # measured: 0.6 to 0.8 MiB of stacks, files and pipes, beside page tables
_PAGE_TABLE_SHARE = 512  # 8 bytes for every page of 4 KiB
_CLOSE_SECONDS = 2.0  # the kernel lets go of a dead process's group after a moment
_numbers = itertools.count()


class HardCap:
    """One group with a limit; `close` removes it."""

    def __init__(self, budget_bytes: int, *, holds_us: bool, root: Path = Path("/")) -> None:
        """Leaves the kernel a little room of its own above the budget. `holds_us` moves this process in, as
        version 2 wants it unless we are in its root; `root` holds `proc` and `sys`, tests give a made-up one.

        Raises:
            UsageError: no such group can be made here; says why.
        """
        group = memory_group(root)
        if group is None:
            raise _refusal("there is no memory cgroup here")
        self.limit_bytes = budget_bytes + _KERNEL_BYTES + budget_bytes // _PAGE_TABLE_SHARE
        self._version = group.version
        self._origin = group.folder
        self.folder = group.folder / f"memfit-{os.getpid()}-{next(_numbers)}"
        self._holds_us = False
        _remove_abandoned(group.folder, root)
        try:
            self.folder.mkdir()
            self._holds_us = holds_us  # before it is true: an interrupt may come between
            if holds_us:
                self.enter(os.getpid())
            self._set_limits()
        except OSError as error:
            self.close()
            raise _refusal(f"{error.filename or self.folder}: {error.strerror}") from None
        except KeyboardInterrupt:
            self.close()
            raise

    def enter(self, pid: int) -> None:
        """Move a process in; what it holds already stays counted where it is.

        Raises:
            OSError: the kernel refuses, or the process has ended.
        """
        _move(pid, self.folder)

    def _set_limits(self) -> None:
        limit, swap, _, _ = (self.folder / name for name in _FILES[self._version])
        control = self._origin / "cgroup.subtree_control"
        if self._version == 2 and "memory" not in control.read_text().split():
            # Refused as long as others are in our own group, unless that is the root.
            _write(control, "+memory")
        _write(limit, str(self.limit_bytes))
        if swap.exists():  # or the kernel would rather swap than stop us
            _write(swap, str(self.limit_bytes) if self._version == 1 else "0")

    @property
    def peak_bytes(self) -> int | None:
        """The most that was counted at once; None where the kernel does not say (version 2 before 5.19)."""
        try:
            return int((self.folder / _FILES[self._version][2]).read_text())
        except OSError:
            return None

    @property
    def has_killed(self) -> bool:
        """Whether the kernel ended a process inside because of the limit."""
        lines = (self.folder / _FILES[self._version][3]).read_text().splitlines()
        return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines)

    def close(self) -> None:
        """Remove the group; all but this process must have ended. Safe to repeat."""
        if self._holds_us:
            self._leave()
        deadline = time.monotonic() + _CLOSE_SECONDS
        while True:
            try:
                self.folder.rmdir()
                return
            except OSError as error:
                # What cannot be removed now is removed by the next that starts.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    return
            time.sleep(0.01)

    def _leave(self) -> None:
        self._holds_us = False
        try:
            _move(os.getpid(), self._origin)
        except OSError:  # version 2: a group that shares memory out holds no processes itself
            with contextlib.suppress(OSError):
                _write(self._origin / "cgroup.subtree_control", "-memory")
                _move(os.getpid(), self._origin)


def _move(pid: int, folder: Path) -> None:
    _write(folder / "cgroup.procs", str(pid))


def _write(path: Path, text: str) -> None:
    """As the kernel wants it: one call, whose error names the file."""
    try:
        path.write_text(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _remove_abandoned(folder: Path, root: Path) -> None:
    """Groups of processes that were killed before they could remove them; those still in use refuse."""
    for group in folder.glob("memfit-*-*"):
        if not (root / "proc" / group.name.split("-")[1]).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def _refusal(why: str) -> UsageError:
    return WrongValueError(
        "hard_cap",
        f": {why}; leave it out (memfit then watches its memory itself), run as root, or in a "
        "group of its own: systemd-run --user --scope -p Delegate=yes memfit …",
    )
