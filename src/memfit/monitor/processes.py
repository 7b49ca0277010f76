"""All memfit processes of this machine, those that belong together as one: a parent and its workers.

Knows no command's options: whoever asks says how a command line is read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from memfit.memory.process_memory import group_bytes, process_memory

__all__ = ["CommandLine", "ProcessGroup", "ProcessWatch", "program_of"]

_SCAN_SECONDS = 3.0  # between two looks at all of the machine's processes
_MEMORY_SHARE = 0.02  # of the time, for reading memory: exact figures take 5 ms a GiB
_HELPER = re.compile(r"memfit(\.\w+)+", re.ASCII)
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # Python's own options
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # listening on all addresses, it answers on this one

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What a memfit command was told."""

    command: str  # "serve"; "python" where a program of the user's loaded a model
    model: str | None = None
    host: str | None = None  # of a server
    port: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """A command, and all processes that it started."""

    pid: int
    told: CommandLine
    pids: tuple[int, ...]  # its own first
    started: float  # seconds since 1970
    is_own_user: bool  # it may be told a key
    address: str | None  # where a server listens
    cpus: float  # kept busy since the last look
    held_bytes: int | None  # the summed Pss; None where another user's may not be read
    anonymous_bytes: int | None  # of these, what is no page of a file


class ProcessWatch:
    """Looks again and again: CPU use is that between two looks. For one thread."""

    def __init__(self, read: Callable[[Sequence[str]], CommandLine], *, own_pid: int | None = None) -> None:
        """`read` is given what follows `memfit` on a command line. `own_pid` is left out: who looks."""
        self._read, self._own_pid = read, own_pid or os.getpid()
        self._groups: dict[int, _Watched] = {}
        self._next_scan = self._next_reading = 0.0

    def look(self) -> tuple[ProcessGroup, ...]:
        """By their age."""
        if time.monotonic() >= self._next_scan:
            self._scan()
            self._next_scan = time.monotonic() + _SCAN_SECONDS
        if (began := time.monotonic()) >= self._next_reading:
            for group in self._groups.values():
                group.read_memory()
            now = time.monotonic()
            self._next_reading = now + (now - began) / _MEMORY_SHARE
        found = [group.look() for group in self._groups.values()]
        return tuple(sorted(filter(None, found), key=lambda one: (one.started, one.pid)))

    def _scan(self) -> None:
        # The same objects each time, which is how they know their CPU use.
        processes = {one.pid: one for one in psutil.process_iter()}
        parents = {pid: parent for pid, one in processes.items() if (parent := _asked(one.ppid)) is not None}
        programs = {pid: program_of(_asked(processes[pid].cmdline) or ()) for pid in parents}
        roots = {pid: _root(pid, parents, programs) for pid in parents}
        groups: dict[int, _Watched] = {}
        for root in sorted({root for root in roots.values() if root not in (None, self._own_pid)}):
            members = [processes[pid] for pid in sorted(roots) if roots[pid] == root and pid != root]
            known = self._groups.get(root)
            if known is None or known.process != processes[root]:
                known = _Watched(processes[root], self._told(programs[root]))
                self._next_reading = 0.0
            known.members = [processes[root], *members]
            known.find_address()
            groups[root] = known
        self._groups = groups

    def _told(self, program: tuple[str, Sequence[str]] | None) -> CommandLine:
        assert program
        module, arguments = program
        return self._read(arguments) if module == "memfit" else CommandLine(command="python")


class _Watched:
    """One group, and what is known of it."""

    def __init__(self, process: psutil.Process, told: CommandLine) -> None:
        self.process, self._told = process, told
        self.members: Sequence[psutil.Process] = (process,)
        self._address: str | None = None
        self._held: tuple[int, int] | None = None
        self._started = _asked(process.create_time) or 0.0
        users = _asked(process.uids)
        self._is_own_user = users is not None and users.effective == os.geteuid()

    def look(self) -> ProcessGroup | None:
        """None once it has ended."""
        shares = [_asked(one.cpu_percent) for one in self.members]
        if shares[0] is None:
            return None
        return ProcessGroup(
            pid=self.process.pid,
            told=self._told,
            pids=tuple(one.pid for one, share in zip(self.members, shares, strict=True) if share is not None),
            started=self._started,
            is_own_user=self._is_own_user,
            address=self._address,
            cpus=sum(share or 0.0 for share in shares) / 100,
            held_bytes=self._held and self._held[0],
            anonymous_bytes=self._held and self._held[1],
        )

    def find_address(self) -> None:
        """Of a server, once it listens."""
        if self._told.command != "serve" or self._address:
            return
        try:
            sockets = self.process.net_connections("tcp")
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied:  # another user's
            self._address = _told_address(self._told)
            return
        listening = [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN]
        self._address = min((_url(one.ip, one.port) for one in listening), default=None)

    def read_memory(self) -> None:
        try:
            found = []
            for member in self.members:
                try:
                    found.append(process_memory(member.pid))
                except ProcessLookupError:
                    continue
            self._held = group_bytes(found), sum(one.anonymous_bytes for one in found)
        except PermissionError:
            self._held = None


def program_of(words: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """The module of memfit that a command line runs, "memfit" for the command line itself, and its arguments;
    None where it runs another program."""
    if not words or not words[0]:
        return None
    first = Path(words[0]).name
    if first == "memfit":
        return first, words[1:]
    if not first.startswith("python"):
        return None
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c"):
        at += 2 if words[at] in _WITH_VALUE else 1
    rest = words[at:]
    if rest[:2] == ["-m", "memfit"]:
        return "memfit", rest[2:]
    if rest[:1] == ["-m"] or rest[:1] == ["-c"]:
        at = 1 if rest[0] == "-m" else 2  # Python before 3.11 is given a line of code that runs the module
        return (rest[at], rest[at + 1 :]) if len(rest) > at and _HELPER.fullmatch(rest[at]) else None
    return ("memfit", rest[1:]) if rest and Path(rest[0]).name == "memfit" else None


def _root(pid: int, parents: Mapping[int, int], programs: Mapping[int, object]) -> int | None:
    """The topmost process of memfit's among a process and those that it descends from."""
    found: int | None = None
    seen: set[int] = set()
    while pid in parents and pid not in seen:  # a number that was given again may make a circle
        seen.add(pid)
        found = pid if programs[pid] else found
        pid = parents[pid]
    return found


def _told_address(told: CommandLine) -> str | None:
    """By a stranger's word, only on this machine."""
    host = _ANYWHERE.get(told.host or "", told.host or "127.0.0.1")
    with contextlib.suppress(ValueError):
        if told.port and ipaddress.ip_address(host).is_loopback:
            return _url(host, told.port)
    return None


def _url(host: str, port: int) -> str:
    host = _ANYWHERE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _asked(question: Callable[[], _T]) -> _T | None:
    """None where the process has ended, or may not be asked."""
    try:
        return question()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
