"""What both engines' calibrations share: a cache file of figures, and the run of a small model."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memfit.errors import EngineError, EngineMissingError, MemfitError
from memfit.processes.helper import ask_helper

__all__ = ["CachedFigures", "run_small_model"]


class CachedFigures:
    """Figures in a file. They count for one key only: another one begins anew."""

    def __init__(self, path: Path, key: str, say: Callable[[str], None]) -> None:
        """`say` is told what is measured."""
        self._path, self._key, self._say = path, key, say
        self.values: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(path.read_text())
            if stored["key"] == key:
                self.values = dict(stored["values"])

    def once(self, name: str, told: str, measure: Callable[[], Any], *, part: str | None = None) -> Any:
        """A figure, measured where it is not known; `part` is the group of figures that it belongs to."""
        known = self.values.setdefault(part, {}) if part else self.values
        if name not in known:
            self._say(f"measuring {told}, once")
            known[name] = measure()
            self.write()
        return known[name]

    def write(self) -> None:
        """Atomically: two memfits may measure at once, and one may be killed in the middle."""
        with contextlib.suppress(OSError):  # a read-only home costs measuring again, nothing else
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump({"key": self._key, "values": self.values}, file)
            Path(file.name).replace(self._path)


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
