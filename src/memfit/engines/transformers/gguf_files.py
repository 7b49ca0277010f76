"""GGUF files through transformers, in the parent: the checkpoints they become, kept in the cache folder.

Of each file and type there are two: `planned`, a description whose weights are a hole, and `whole`, which is
there once the file has been run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from memfit.engines.transformers.calibrate import require_libraries
from memfit.engines.transformers.process import TransformersWorker
from memfit.errors import DoesNotFitError, ModelError, WorkerDiedError
from memfit.hardware.folders import cache_folder, fresh_folder
from memfit.memory.meter import Meter
from memfit.planner.transformers.transformers_plan import TransformersPlan
from memfit.units import format_bytes

__all__ = ["GgufCheckpoint", "convert", "find_checkpoint_of", "is_converted"]

_FORMAT = 1  # of the folders
_PLANNED, _WHOLE, _ABOUT = "planned", "whole", "about.json"


@dataclass(frozen=True, kw_only=True)
class GgufCheckpoint:
    """What a GGUF file is, or will be, as a checkpoint."""

    folder: Path
    is_whole: bool
    reading_bytes: int  # what a process held at most while it read the header


def find_checkpoint_of(file: Path, *, dtype: str, say: Callable[[str], None]) -> GgufCheckpoint:
    """The checkpoint that a GGUF file becomes in `dtype`; described anew where it is not known.

    Raises:
        EngineError: transformers cannot read it.
        EngineMissingError: transformers is not installed, or what it reads such files with.
    """
    require_libraries("gguf")
    status = file.stat()
    told = f"{file.absolute()} {status.st_size} {status.st_mtime_ns} {dtype} {_FORMAT}"
    place = _folders() / hashlib.sha256(told.encode()).hexdigest()[:16]
    about = place / _PLANNED / _ABOUT
    if not about.is_file():
        say(f"reading {file.name} with transformers, once")
        with fresh_folder(place / _PLANNED) as folder, TransformersWorker(load_in=dtype, threads=1) as worker:
            found = worker.ask("describe_gguf", file=str(file.absolute()), folder=str(folder), dtype=dtype)
            (folder / _ABOUT).write_text(json.dumps(found))
    whole = place / _WHOLE
    return GgufCheckpoint(
        folder=whole if whole.is_dir() else place / _PLANNED,
        is_whole=whole.is_dir(),
        reading_bytes=json.loads(about.read_text())["peak_bytes"],
    )


def is_converted(folder: Path) -> bool:
    """Whether it is a checkpoint that a GGUF file became, or will become."""
    return folder.parent.parent == _folders()


def _folders() -> Path:
    return cache_folder() / "gguf"


def convert(plan: TransformersPlan, *, count_parent: bool) -> tuple[TransformersPlan, int]:
    """The plan with weights where it had a description, and the most bytes that were held meanwhile.

    Raises:
        DoesNotFitError: it was about to take more RAM than the plan may.
        ModelError: the disk has no room.
        EngineError: transformers cannot read the file.
    """
    config = plan.config
    assert config.gguf is not None
    place = config.folder.parent
    free, needs = shutil.disk_usage(place).free, sum(path.stat().st_size for path in config.paths)
    if free < needs:
        raise ModelError(
            f"{place} has {format_bytes(free)} free, and the file becomes a checkpoint of "
            f"{format_bytes(needs)}; free some, or set XDG_CACHE_HOME to a folder on another disk"
        )
    with (
        fresh_folder(place / _WHOLE) as folder,
        TransformersWorker(load_in=config.precision.plain_type, threads=config.threads) as worker,
    ):
        for path in config.folder.iterdir():  # the tokenizer
            if path not in config.paths and path.name != _ABOUT:
                shutil.copy(path, folder)
        meter = Meter(
            worker.pid,
            count_parent=count_parent,
            model_files=[config.gguf],
            limit_bytes=plan.ram.limit_bytes,
            on_overrun=worker.kill,
        )
        meter.start()
        try:
            worker.ask(
                "convert_gguf", file=str(config.gguf), folder=str(folder), dtype=config.precision.plain_type
            )
        except WorkerDiedError:
            if meter.overrun is None:
                raise
            raise DoesNotFitError(
                tier="RAM", needs_bytes=meter.overrun.held_bytes, budget_bytes=plan.ram.limit_bytes
            ) from None
        finally:
            meter.stop()
    whole = place / _WHOLE
    paths = tuple(sorted(whole.glob("*.safetensors")))
    return replace(plan, config=replace(config, folder=whole, paths=paths, gguf=None)), meter.peak_bytes
