"""Saved plans: takes the fingerprint of model and machine, and reads a plan back where both are the same.

What the JSON means is planner/saved.py's. A plan keeps its limits; they only shrink to what is free now.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from memfit import __version__
from memfit.engines.llamacpp.calibrate import Calibration
from memfit.engines.llamacpp.lookup import find_devices
from memfit.errors import ModelError, UsageError
from memfit.hardware import probe
from memfit.hardware.machine import Device, Machine
from memfit.headers import read_model
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_writes
from memfit.hub.resolve import find_file
from memfit.planner.fingerprint import FileMark, Fingerprint, NamedBytes
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.request import Budget
from memfit.planner.saved import named_model, plan_from_json
from memfit.strict_json import parse_json, read_bytes, shown
from memfit.units import KIB, MIB

__all__ = ["read_plan", "require_this_machine", "take_fingerprint"]

_SAMPLES = 16
_SAMPLE_BYTES = 64 * KIB
_PIECE_BYTES = MIB


def take_fingerprint(
    spec: ModelSpec,
    machine: Machine,
    devices: Sequence[Device],
    calibration: Calibration,
    *,
    profile: str | None = None,
    counts_parent: bool,
) -> Fingerprint:
    """Of a model and of a machine, with those `devices` that are used. Reads some 1 MiB of each file.

    Raises:
        ModelError: a file cannot be read.
    """
    return Fingerprint(
        memfit=__version__,
        python=platform.python_version(),
        engine=f"llamacpp {calibration.engine_build}".strip(),
        profile=profile,
        cpu=machine.cpu.model,
        cores=machine.cpu.logical_cores,
        ram_bytes=machine.ram.total_bytes,
        gpus=tuple(NamedBytes(name=gpu.name, total_bytes=gpu.total_bytes) for gpu in machine.gpus),
        remote_devices=_lent(devices),
        files=tuple(map(_mark, spec.paths, spec.data_offset_bytes)),
        counts_parent=counts_parent,
    )


def read_plan(
    path: str | Path,
    *,
    model: str | None = None,
    count_parent: bool = False,
    say: Callable[[str], None] | None = None,
) -> LlamaPlan:
    """The plan that `memfit plan --json`, or `Plan.to_json`, wrote to a file.

    `model` says where its model lies by now; left out, it is where it was. `count_parent` as in `load`.

    Raises:
        UsageError: no plan, or one for another model, machine or version of memfit.
        ModelError: the model is missing or cannot be read.
        DoesNotFitError: what the plan needs is not free now.
        EngineError: a remote device does not answer.
    """
    where = f"plan {shown(str(path))}"
    values = parse_json(read_bytes(Path(path), where), where)
    source, paths = named_model(values, where)
    named = source if model is None else model
    place = paths[0] if model is None and source != "demo" else find_file(named, say)
    spec = read_model(place, source=named)
    require_writes(spec)
    plan = plan_from_json(values, where, spec)
    require_this_machine(plan)
    if model is None and source != "demo" and plan.spec.paths != paths:
        raise UsageError(f"{where}: config.paths are not the files of the model {paths[0]}")
    # From here on nothing hangs on the paths in the JSON.
    plan = replace(plan, config=replace(plan.config, paths=plan.spec.paths))
    return _ready(plan, where, count_parent, say or _say_nothing)


def require_this_machine(plan: LlamaPlan) -> None:
    """Raises UsageError where the plan was made with --machine."""
    if plan.fingerprint and plan.fingerprint.profile is not None:
        raise UsageError(
            f"the plan is for the machine {plan.fingerprint.profile}: it can be kept and compared, but "
            f"not run here; a plan for this machine: {_command(plan)}"
        )


def _ready(plan: LlamaPlan, where: str, count_parent: bool, say: Callable[[str], None]) -> LlamaPlan:
    """The plan with its limits as of now; refused unless all is as it was when it was made."""
    made_for = plan.fingerprint
    assert made_for is not None, "plan_from_json refuses a plan without"
    if count_parent and not made_for.counts_parent:
        raise UsageError(
            f"{where} was made in Python and leaves out the command line's own memory; "
            f"make a new one: {_command(plan)}"
        )
    here = probe()
    calibration = Calibration(cpu_model=here.cpu.model, say=say)
    now = take_fingerprint(plan.spec, here, (), calibration, counts_parent=made_for.counts_parent)
    # Remote devices last: what has changed here is a better reason than that one of them is gone.
    _require_same(plan, replace(now, remote_devices=made_for.remote_devices), where)
    devices = _find_again(plan, here, calibration, where)
    _require_same(plan, replace(now, remote_devices=_lent(devices)), where)
    plan.require_fit()
    return _within(plan, [here.ram.available_bytes, *(device.free_bytes for device in devices)])


def _require_same(plan: LlamaPlan, now: Fingerprint, where: str) -> None:
    assert plan.fingerprint is not None
    if changes := "; ".join(plan.fingerprint.changes(now)):
        raise UsageError(
            f"{where} was made for another model or machine; changed are: {changes}; "
            f"make a new one: {_command(plan)}"
        )


def _find_again(plan: LlamaPlan, here: Machine, calibration: Calibration, where: str) -> list[Device]:
    """The devices that the plan uses, in its order."""
    if not plan.config.devices:
        return []
    tiers = plan.tiers[1:]
    budget = Budget(
        vram={int(tier.name[3:]): tier.budget_bytes for tier in tiers if ":" not in tier.name},
        rpc={tier.name: None for tier in tiers if ":" in tier.name},
    )
    found = find_devices(here, budget, calibration)
    wanted = list(zip((tier.name for tier in tiers), plan.config.devices, strict=True))
    if [(device.name, device.engine_name) for device in found] != wanted:
        there = ", ".join(f"{device.name} as {device.engine_name}" for device in found) or "none"
        raise UsageError(
            f"{where} needs {', '.join(f'{name} as {engine}' for name, engine in wanted)}, and there is "
            f"{there}; make a new one: {_command(plan)}"
        )
    return found


def _within(plan: LlamaPlan, free: Sequence[int]) -> LlamaPlan:
    """With no limit above what is `free` now, per place in use.

    Raises:
        DoesNotFitError: it is too little.
    """
    used = plan.tiers[: len(free)]
    tiers = [
        replace(tier, limit_bytes=min(tier.limit_bytes, size)) for tier, size in zip(used, free, strict=True)
    ]
    limited = replace(plan, tiers=(*tiers, *plan.tiers[len(free) :]))
    advice = ("closing what else uses memory", f"a new plan: {_command(plan)}")
    replace(limited, suggestions=advice).require_fit()
    return limited


def _lent(devices: Sequence[Device]) -> tuple[NamedBytes, ...]:
    return tuple(NamedBytes(name=one.name, total_bytes=one.total_bytes) for one in devices if one.is_remote)


def _command(plan: LlamaPlan) -> str:
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


def _say_nothing(text: str) -> None:
    del text
