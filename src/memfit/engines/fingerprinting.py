"""Takes the fingerprint of a model and a machine, which planner/fingerprint.py compares, for both engines."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from memfit import __version__
from memfit.errors import ModelError
from memfit.hardware.machine import Device, Machine
from memfit.headers.model_spec import ModelSpec
from memfit.planner.fingerprint import FileMark, Fingerprint, NamedBytes
from memfit.units import KIB, MIB

__all__ = ["file_marks", "header_digest", "lent", "take_fingerprint"]

_SAMPLES = 16
_SAMPLE_BYTES = 64 * KIB
_PIECE_BYTES = MIB


def take_fingerprint(
    spec: ModelSpec,
    machine: Machine,
    devices: Sequence[Device] = (),
    *,
    engine: str,
    whole_files: Sequence[Path] = (),
    profile: str | None = None,
    counts_parent: bool,
) -> Fingerprint:
    """Of a model and of a machine, with those `devices` that are used. `engine` is its name and build.

    Reads some 1 MiB of each of the model's files, and all of `whole_files`, which are the model's as well.

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
        remote_devices=lent(devices),
        files=(*file_marks(spec), *map(_mark, whole_files)),
        counts_parent=counts_parent,
    )


def file_marks(spec: ModelSpec) -> tuple[FileMark, ...]:
    """Of the model's files, some 1 MiB of each.

    Raises:
        ModelError: a file cannot be read.
    """
    return tuple(map(_mark, spec.paths, spec.data_offset_bytes))


def header_digest(spec: ModelSpec) -> str:
    """Of all that the files say before their tensors' data.

    Raises:
        ModelError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path, size in zip(spec.paths, spec.data_offset_bytes, strict=True):
        try:
            with path.open("rb", buffering=0) as file:
                for offset in range(0, size, _PIECE_BYTES):
                    digest.update(file.read(min(_PIECE_BYTES, size - offset)))
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def lent(devices: Sequence[Device]) -> tuple[NamedBytes, ...]:
    return tuple(NamedBytes(name=one.name, total_bytes=one.total_bytes) for one in devices if one.is_remote)


def _mark(path: Path, data_offset: int | None = None) -> FileMark:
    """Of header and evenly spaced samples of the tensors; an edit between two samples is not noticed."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing beyond the samples
            for offset, length in _ranges(size, size if data_offset is None else data_offset):
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
