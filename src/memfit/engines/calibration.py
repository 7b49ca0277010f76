"""What both engines' calibrations share: cache files, a look at the machine, the run of a small model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memfit.errors import EngineError, EngineMissingError, MemfitError
from memfit.hardware.cpu_use import CpuMeter
from memfit.processes.helper import ask_helper

__all__ = ["CachedFigures", "KeptAnswers", "is_quiet", "run_small_model"]

_DOUBT_SECONDS = 24 * 3600.0
_RETRY_SECONDS = 600.0
_LOOK_SECONDS = 0.1
_KEPT_SECONDS = 60 * 24 * 3600.0


class CachedFigures:
    """Figures in a file. They count for one key only: another one begins anew."""

    def __init__(self, path: Path, key: str, say: Callable[[str], None]) -> None:
        """`say` is told what is measured."""
        self._path, self._key, self._say = path, key, say
        self.values = self._read()

    def once(self, name: str, told: str, measure: Callable[[], Any], *, part: str | None = None) -> Any:
        """A figure, measured where it is not known, or old; `part` is the group of figures it belongs to."""
        known = self.values.setdefault(part, {}) if part else self.values
        if name not in known or (isinstance(known[name], dict) and self.is_old(known[name])):
            self._say(f"measuring {told}, once")
            known[name] = measure()
            self.write()
        return known[name]

    def doubt(self) -> None:
        """A run was far from what these figures predicted: speeds measured before are measured again. Once a
        day at most, for some models are predicted badly by good figures."""
        now = time.time()
        if not 0 <= now - self.values.get("doubted_at", 0.0) < _DOUBT_SECONDS:
            self.values["doubted_at"] = now
            self.write()

    def is_old(self, found: Mapping[str, Any]) -> bool:
        """Whether speeds are to be measured again: they were taken beside other programs, or are in doubt,
        and the machine is quiet now. Figures that do not say when they were measured are no speeds. Where a
        second try was disturbed, too, the third waits: each takes seconds."""
        if "measured_at" not in found:
            return False
        # A clock that was set back leaves doubts of the future.
        doubted = found["measured_at"] <= self.values.get("doubted_at", 0.0) <= time.time()
        tried = 0 <= time.time() - found.get("tried_at", 0.0) < _RETRY_SECONDS
        return (doubted or (found["is_provisional"] and not tried)) and is_quiet()

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            stored = json.loads(self._path.read_text())
            if stored["key"] == self._key:
                return dict(stored["values"])
        return {}

    def write(self) -> None:
        """What others wrote meanwhile is lost, and measured again; but not their doubts."""
        if doubted := max(one.get("doubted_at", 0.0) for one in (self.values, self._read())):
            self.values["doubted_at"] = doubted
        _write(self._path, {"key": self._key, "values": self.values})


class KeptAnswers:
    """Answers to questions, each in a file of its own: only those that are asked for take memory."""

    def __init__(self, folder: Path, key: str, *, kept_seconds: float | None = _KEPT_SECONDS) -> None:
        """They hold as long as the `key` is the same, and nothing older than `kept_seconds` is kept."""
        self._folder, self._key, self._kept_seconds = folder, key, kept_seconds

    def find(self, question: str) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            stored = json.loads(self._path(question).read_text())
            if (stored["key"], stored["question"]) == (self._key, question):
                return dict(stored["answer"])
        return None

    def keep(self, question: str, answer: Mapping[str, Any]) -> None:
        if self._kept_seconds is not None:
            old = time.time() - self._kept_seconds
            with contextlib.suppress(OSError):
                for path in self._folder.iterdir():
                    if path.stat().st_mtime < old:
                        path.unlink()
        _write(self._path(question), {"key": self._key, "question": question, "answer": answer})

    def _path(self, question: str) -> Path:
        name = hashlib.sha256(f"{self._key} {question}".encode()).hexdigest()
        return self._folder / f"{name}.json"


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Atomically: two memfits may measure at once, and one may be killed in the middle."""
    with contextlib.suppress(OSError):  # a read-only home costs measuring again, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            try:
                json.dump(values, file)
                file.flush()
                Path(file.name).replace(path)
            except OSError:  # the disk is full
                Path(file.name).unlink()
                raise


def is_quiet() -> bool:
    """Whether other programs leave this machine's CPUs alone. Takes a tenth of a second."""
    meter = CpuMeter()
    time.sleep(_LOOK_SECONDS)
    use = meter.use(0.0)
    return use is None or use.is_quiet


def run_small_model(engine: str, model: str, what: str) -> dict[str, Any]:
    """What a run of a small model finds, in a process of its own: the caller's may hold anything.

    Raises:
        EngineMissingError: a library is not installed.
        EngineError: `what` says who cannot run what.
    """
    try:
        return ask_helper("memfit", "calibration-run", engine, model, name="its process")
    except EngineMissingError:
        raise
    except MemfitError as error:
        raise EngineError(f"{what}: {error}") from None
