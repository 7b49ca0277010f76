"""Takes the fingerprint of a model and a machine: what a saved plan is compared by."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from memfit import __version__
from memfit.errors import ModelError, UsageError
from memfit.hardware.machine import Device, Machine
from memfit.headers.model_spec import ModelSpec
from memfit.planner.fingerprint import FileMark, Fingerprint, NamedBytes
from memfit.planner.plan import LlamaPlan, Plan
from memfit.units import KIB, MIB

__all__ = ["new_plan_command", "remote_bytes", "require_this_machine", "take_fingerprint"]

_SAMPLES = 16
_SAMPLE_BYTES = 64 * KIB
_PIECE_BYTES = MIB


def take_fingerprint(
    spec: ModelSpec,
    machine: Machine,
    devices: Sequence[Device],
    engine: str,
    *,
    profile: str | None = None,
    counts_parent: bool,
) -> Fingerprint:
    """Of a model and of a machine, with those `devices` that are used; `engine` is its name and build.

    Reads some 1 MiB of each file.

    Raises:
        ModelError: a file cannot be read.
    """
    return Fingerprint(
        memfit=__version__,
        python=platform.python_version(),
        engine=engine,
        profile=profile,
        cpu=machine.cpu.model,
        cores=machine.cpu.logical_cores,
        ram_bytes=machine.ram.total_bytes,
        gpus=tuple(NamedBytes(name=gpu.name, total_bytes=gpu.total_bytes) for gpu in machine.gpus),
        remote_devices=remote_bytes(devices),
        files=tuple(map(_mark, spec.paths, spec.data_offset_bytes)),
        counts_parent=counts_parent,
    )


def remote_bytes(devices: Sequence[Device]) -> tuple[NamedBytes, ...]:
    return tuple(NamedBytes(name=one.name, total_bytes=one.total_bytes) for one in devices if one.is_remote)


def require_this_machine(plan: Plan) -> None:
    """Raises UsageError where the plan was made with --machine."""
    if isinstance(plan, LlamaPlan) and plan.fingerprint and plan.fingerprint.profile is not None:
        raise UsageError(
            f"the plan is for the machine {plan.fingerprint.profile}: it can be kept and compared, but "
            f"not run here; a plan for this machine: {new_plan_command(plan)}"
        )


def new_plan_command(plan: Plan) -> str:
    return f"memfit plan {shlex.quote(plan.spec.source)} --json > FILE"


def _mark(path: Path, data_offset: int) -> FileMark:
    """Of header and evenly spaced samples of the tensors; an edit between two samples is not noticed."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing beyond the samples
            for offset, length in _ranges(size, data_offset):
                digest.update(os.pread(file.fileno(), length, offset))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    return FileMark(size_bytes=size, sha256=digest.hexdigest())


def _ranges(size: int, data_offset: int) -> Iterator[tuple[int, int]]:
    """(offset, length): the header in pieces, then the samples, the last of which ends with the file."""
    for offset in range(0, data_offset, _PIECE_BYTES):
        yield offset, min(_PIECE_BYTES, data_offset - offset)
    room = max(0, size - data_offset - _SAMPLE_BYTES)
    for number in range(_SAMPLES):
        yield data_offset + room * number // (_SAMPLES - 1), _SAMPLE_BYTES
