"""What a call asks the price of: another budget or workload of the served model (pricer.py prices it).

What is free is what is free now, beside the model that is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from memfit.errors import UsageError, WrongValueError
from memfit.openai.fields import read_boolean, read_integer, read_object, read_text, require_known
from memfit.planner.plan import Plan
from memfit.planner.request import Budget, Workload
from memfit.strict_json import refusal

__all__ = ["read_price"]

_MOST_DEVICES = 64  # each that is remote is asked, one after the other, while other calls wait

_READERS = {"int": read_integer, "str": read_text, "bool": read_boolean}
_WORKLOAD = {one.name: _READERS[str(one.type).partition(" ")[0]] for one in fields(Workload)}


def read_price(body: Mapping[str, Any], plan: Plan) -> tuple[Budget, Workload]:
    """What a body asks the price of; what it leaves out is as in the running `plan`.

    Raises:
        UsageError: a field that is wrong, or that nobody knows.
    """
    require_known(body, {"budget", "workload"}, "body")
    budget, workload = (
        {} if body.get(name) is None else read_object(body[name], name) for name in ("budget", "workload")
    )
    require_known(budget, {one.name for one in fields(Budget)}, "budget")
    require_known(workload, _WORKLOAD.keys(), "workload")
    wanted = {
        name: _WORKLOAD[name](value, f"workload.{name}")
        for name, value in workload.items()
        if value is not None
    }
    try:
        return Budget(**{**_running(plan), **_budget(budget)}), Workload(
            **{**asdict(plan.workload), **wanted}
        )
    except WrongValueError as error:
        part = "workload" if error.name in _WORKLOAD else "budget"
        raise error.as_field(f"{part}.{error.name.replace(' ', '.')}") from None


def _running(plan: Plan) -> dict[str, Any]:
    """The budget that the plan was made for."""
    devices = {tier.name: tier.budget_bytes for tier in plan.tiers if tier.kind == "vram"}
    local = {int(name.removeprefix("gpu")): size for name, size in devices.items() if name.startswith("gpu")}
    remote = {name: size for name, size in devices.items() if not name.startswith("gpu")}
    return {"ram": plan.ram.budget_bytes, "vram": local or None, "rpc": remote}


def _budget(given: Mapping[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        path = f"budget.{name}"
        if name == "disk":
            read[name] = read_boolean(value, path)
        elif name == "rpc" or isinstance(value, dict):
            sizes = read_object(value, path)
            if len(sizes) > _MOST_DEVICES:
                raise UsageError(
                    f"{path}: got {len(sizes)} devices, needed at most {_MOST_DEVICES}",
                    field=path,
                    got=len(sizes),
                    needed=_MOST_DEVICES,
                )
            read[name] = {_device(key): _size(size, f"{path}.{key}") for key, size in sizes.items()}
        else:
            read[name] = _size(value, path)
    if isinstance(read.get("ram"), dict):
        raise refusal("budget.ram", given["ram"], "a size")
    return read


def _device(name: str) -> int | str:
    """A GPU's number is one, though JSON's keys are texts."""
    return int(name) if name.isascii() and name.isdigit() and len(name) < 4 else name


def _size(value: Any, path: str) -> int | str:
    if isinstance(value, str):
        return value
    if read_integer(value, path) < 0:
        raise UsageError(f"{path}: got {value}, needed a size", field=path, got=value, needed="a size")
    return int(value)
