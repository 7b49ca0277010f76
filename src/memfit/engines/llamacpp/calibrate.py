"""Measures on this machine, once, what the oracle cannot say; keeps it in a cache file.

The baseline comes from a model of a few kilobytes, written here, simulated and really loaded: what the
second holds beyond the first is what every worker holds. Kernel speeds come from the worker's bench.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memfit import __version__
from memfit.engines.llamacpp.client import WorkerProcess
from memfit.errors import EngineError, EngineMissingError
from memfit.memory.baseline import Baseline
from memfit.memory.process import ProcessMemory
from memfit.planner.speed import KernelSpeed

__all__ = ["Calibration"]

_BUSY_SECONDS = 600  # between two tries to measure a busy machine
# A program of its own: the caller's process may hold anything. Named, not imported: it lies above here.
_REHEARSAL = (sys.executable, "-m", "memfit.cli.rehearse")


class Calibration:
    """This machine's constants for this engine build; each is measured when first asked for."""

    def __init__(self, *, cpu_model: str, say: Callable[[str], None], path: Path | None = None) -> None:
        self._say = say
        self._path = path or _cache_folder() / "calibration.json"
        self._key = f"{__version__} {cpu_model} {platform.python_version()} {_engine_build()}"
        self._values = self._read()

    def baseline(self, *, count_parent: bool) -> Baseline:
        """The processes' own memory; `count_parent` False leaves the caller's process out."""
        if "baseline" not in self._values:
            self._say("measuring what memfit itself needs on this machine, once")
            self._values["baseline"] = _measure_baseline()
            self._write()
        values = self._values["baseline"]
        return Baseline(
            parent=ProcessMemory(**values["parent"]) if count_parent else None,
            decode_bytes=values["decode_bytes"],
        )

    def kernel_speeds(
        self, types: Sequence[str], *, repack_modes: Sequence[bool], threads: int
    ) -> dict[bool, dict[str, KernelSpeed]] | None:
        """Measured speeds of quantization types, for repacked and plain weights.

        None where the machine is too busy to measure; that is tried again after ten minutes.
        """
        kernels = self._values.setdefault("kernels", {})
        modes = sorted({False, *repack_modes})  # plain speeds also stand in for types that are not repacked
        for repack in modes:
            known = kernels.setdefault(f"{threads} {repack}", {})
            missing = [name for name in types if name not in known]
            if not missing:
                continue
            if time.time() - self._values.get("busy_at", 0) < _BUSY_SECONDS:
                return None
            how = "repacked " if repack else ""
            self._say(f"measuring this CPU's speed with {how}{', '.join(missing)}, once")
            with WorkerProcess() as worker:
                reply = worker.ask("kernels", type_names=missing, repack=repack, threads=threads)
            if reply["speeds"] is None:
                self._say("other programs keep this machine busy; its speed is assumed for now")
                self._values["busy_at"] = time.time()
                self._write()
                return None
            known.update(reply["speeds"])
            self._write()
        plain = kernels[f"{threads} False"]
        return {
            repack: {
                name: KernelSpeed(**(kernels[f"{threads} {repack}"][name] or plain[name])) for name in types
            }
            for repack in repack_modes
        }

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(self._path.read_text())
            if stored["key"] == self._key:
                return dict(stored["values"])
        return {}

    def _write(self) -> None:
        """Atomically: two memfits may calibrate at once, and one may be killed in the middle."""
        with contextlib.suppress(OSError):  # a read-only home costs a second per run, nothing else
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump({"key": self._key, "values": self._values}, file)
            Path(file.name).replace(self._path)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memfit"


def _engine_build() -> str:
    """Size and time of the compiled kernels: another build has other speeds."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EngineMissingError(
            "the llama.cpp engine is not installed; memfit doctor gives the command that installs it"
        )
    builds = sorted((Path(spec.origin).parent / "lib").glob("*ggml-cpu*"))
    return " ".join(f"{stat.st_size}.{stat.st_mtime_ns}" for stat in (one.stat() for one in builds[:1]))


def _measure_baseline() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="memfit-") as folder:
        path = Path(folder) / "tiny.gguf"
        path.write_bytes(_tiny_model())
        done = subprocess.run([*_REHEARSAL, str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        raise EngineError(f"the engine cannot run a tiny model: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout))


def _tiny_model() -> bytes:
    """A llama of one layer, all zeros, as a GGUF file of a few kilobytes."""
    embedding, feed_forward, vocabulary = 32, 32, 64
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (embedding, vocabulary),
        "output": (embedding, vocabulary),
    }
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"):
        shapes[f"blk.0.{part}"] = (embedding, feed_forward)
    shapes["blk.0.ffn_down"] = (feed_forward, embedding)
    for part in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        shapes[part] = (embedding,)
    numbers = {
        "block_count": 1,
        "context_length": 256,
        "embedding_length": embedding,
        "feed_forward_length": feed_forward,
        "attention.head_count": 1,
        "vocab_size": vocabulary,
    }
    pairs = [_string("general.architecture") + struct.pack("<I", 8) + _string("llama")]
    pairs += [_string("tokenizer.ggml.model") + struct.pack("<I", 8) + _string("none")]
    pairs += [_string(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()]
    epsilon = _string("llama.attention.layer_norm_rms_epsilon")
    pairs.append(epsilon + struct.pack("<If", 6, 1e-5))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, shape in shapes.items():
        header += _string(f"{name}.weight") + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}QIQ", *shape, 0, offset)  # type 0: F32
        elements = shape[0] * (shape[1] if len(shape) == 2 else 1)
        offset += 4 * elements  # a multiple of the alignment of 32 for these shapes
    return header + bytes(-len(header) % 32) + bytes(offset)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()
