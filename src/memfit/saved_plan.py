"""Saved plans: reads a plan's file, and refuses it where model, machine or software are not as they were.

What the JSON means is planner/saved.py's. A plan keeps its limits; they only shrink to what is free now.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memfit.engines.fingerprinting import lent, take_fingerprint
from memfit.engines.llamacpp.calibrate import LlamaCalibration
from memfit.engines.llamacpp.lookup import find_devices
from memfit.errors import UsageError
from memfit.hardware.machine import Device, Machine
from memfit.hardware.probe import probe
from memfit.headers import read_model
from memfit.headers.purpose import require_known_purpose
from memfit.hub.resolve import resolve
from memfit.known_losses import with_loss
from memfit.memory.estimate import LlamaConfig
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.planner.fingerprint import Fingerprint
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.plan import Plan
from memfit.planner.request import Budget
from memfit.planner.saved import named_model, plan_from_json, require_held
from memfit.strict_json import parse_json, read_bytes, shown

__all__ = ["read_plan", "require_this_machine", "restore_plan"]

_Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Restored:
    """A plan with its model's files as they lie now, and what else its engine has here."""

    plan: Plan
    engine: str  # its name and build
    whole_files: tuple[Path, ...] = ()  # of the model, beside those that the plan's spec has
    find_devices: Callable[[Machine], list[Device]]  # those in use, in the plan's order


def read_plan(
    path: str | Path, *, model: str | None = None, count_parent: bool = False, say: _Say = lambda text: None
) -> Plan:
    """The plan that `memfit plan --json`, or `Plan.to_json`, wrote to a file.

    `model` says where its model lies by now; left out, it is where it was. `count_parent` as in `load`.

    Raises:
        UsageError: no plan, or one for another model, machine or version of memfit.
        ModelError: the model is missing or cannot be read.
        DoesNotFitError: what the plan needs is not free now.
        EngineError: a remote device does not answer, or a library is missing.
    """
    where = f"plan {shown(str(path))}"
    values = parse_json(read_bytes(Path(path), where), where)
    return restore_plan(values, where, model=model, count_parent=count_parent, say=say)


def restore_plan(
    values: Any,
    where: str,
    *,
    model: str | None = None,
    count_parent: bool = False,
    say: _Say = lambda text: None,
) -> Plan:
    """As `read_plan`, of what `Plan.to_json` gave; `where` is what errors call it."""
    source, config = named_model(values, where)
    if isinstance(config, LlamaConfig):
        found = _find_llama(values, where, source, config, model, say)
    else:
        found = _find_checkpoint(values, where, source, config, model, say)
    return _ready(found, where, count_parent)


def _find_llama(
    values: Any, where: str, source: str, config: LlamaConfig, model: str | None, say: _Say
) -> _Restored:
    named = source if model is None else model
    file = config.paths[0] if model is None and source != "demo" else resolve(named, say).path
    spec = read_model(file, source=named)
    require_known_purpose(spec)
    plan = plan_from_json(values, where, spec)
    assert isinstance(plan, LlamaPlan)
    require_this_machine(plan)
    if model is None and source != "demo" and spec.paths != config.paths:
        raise UsageError(f"{where}: config.paths are not the files of the model {config.paths[0]}")
    # From here on nothing hangs on the paths in the JSON.
    plan = replace(plan, config=replace(config, paths=spec.paths))
    calibration = LlamaCalibration(cpu_model=probe().cpu.model, say=say)
    return _Restored(
        plan=plan,
        engine=f"llamacpp {calibration.engine_build}".strip(),
        find_devices=lambda here: _find_again(plan, here, calibration, where),
    )


def _find_checkpoint(
    values: Any, where: str, source: str, config: TransformersConfig, model: str | None, say: _Say
) -> _Restored:
    from memfit.engines.transformers.checkpoint_files import find_again  # where such a plan is read

    found, row, engine = find_again(config, source if model is None else model, say, moved=model is not None)
    plan = plan_from_json(values, where, found.spec, row=row)
    require_this_machine(plan)
    config = replace(config, folder=found.folder, paths=found.paths, gguf=found.gguf)
    plan = replace(plan, config=config)
    return _Restored(plan=plan, engine=engine, whole_files=found.whole_files, find_devices=lambda _: [])


def require_this_machine(plan: Plan) -> None:
    """Raises UsageError where the plan was made with --machine."""
    if plan.fingerprint and plan.fingerprint.profile is not None:
        raise UsageError(
            f"the plan is for the machine {plan.fingerprint.profile}: it can be kept and compared, but "
            f"not run here; a plan for this machine: {_command(plan)}"
        )


def _ready(found: _Restored, where: str, count_parent: bool) -> Plan:
    """The plan with its limits as of now; refused unless all is as it was when it was made."""
    plan, made_for = found.plan, found.plan.fingerprint
    assert made_for is not None, "plan_from_json refuses a plan without"
    if count_parent and not made_for.counts_parent:
        raise UsageError(
            f"{where} was made in Python and leaves out the command line's own memory; "
            f"make a new one: {_command(plan)}"
        )
    here = probe()
    now = take_fingerprint(
        plan.spec,
        here,
        engine=found.engine,
        whole_files=found.whole_files,
        counts_parent=made_for.counts_parent,
    )
    # Remote devices last: what has changed here is a better reason than that one of them is gone.
    _require_same(plan, replace(now, remote_devices=made_for.remote_devices), where)
    if isinstance(plan, LlamaPlan):
        require_held(plan, where)
    devices = found.find_devices(here)
    _require_same(plan, replace(now, remote_devices=lent(devices)), where)
    plan.require_fit()
    free = {f"gpu{gpu.index}": gpu.free_bytes for gpu in here.gpus}
    free |= {device.name: device.free_bytes for device in devices}
    return with_loss(_within(plan, free | {"ram": here.ram.available_bytes}))


def _require_same(plan: Plan, now: Fingerprint, where: str) -> None:
    assert plan.fingerprint is not None
    if changes := "; ".join(plan.fingerprint.changes(now)):
        raise UsageError(
            f"{where} was made for another model or machine; changed are: {changes}; "
            f"make a new one: {_command(plan)}"
        )


def _find_again(plan: LlamaPlan, here: Machine, calibration: LlamaCalibration, where: str) -> list[Device]:
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


def _within(plan: Plan, free: Mapping[str, int]) -> Plan:
    """With no limit above what is `free` now, by the names of the tiers in use. Raises DoesNotFitError where
    that is too little."""
    tiers = tuple(
        replace(tier, limit_bytes=min(tier.limit_bytes, free.get(tier.name, tier.limit_bytes)))
        for tier in plan.tiers
    )
    limited = replace(plan, tiers=tiers)
    advice = ("closing what else uses memory", f"a new plan: {_command(plan)}")
    replace(limited, suggestions=advice).require_fit()
    return limited


def _command(plan: Plan) -> str:
    settings, config = "", plan.config
    if isinstance(config, TransformersConfig):
        settings = (
            f" --engine transformers --load-in {config.load_in}" + " --double-quant" * config.double_quant
        )
    return f"memfit plan {shlex.quote(plan.spec.source)}{settings} --json > FILE"
