"""Machine profiles: a machine that is not this one, described by a JSON file with a source per figure.

The built-in profiles in `profiles/` are files in the very format that a user writes. An unknown figure
is {"value": null, "note": "why"} and becomes None; whoever predicts has to leave it out. Knows nothing of
models, and judges no figure beyond its type and range.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from memfit.errors import UsageError, readable
from memfit.hardware.machine import Cpu, Gpu, Machine, Ram
from memfit.units import MIB, format_bytes

__all__ = [
    "Figure",
    "Measured",
    "Profile",
    "ProfileCpu",
    "ProfileDisk",
    "ProfileGpu",
    "ProfileRam",
    "profile_names",
    "read_profile",
]

_FILE_LIMIT_BYTES = MIB
_MEMORY_LIMIT_BYTES = 2**50
_CORES_LIMIT = 4096
_RATE_LIMIT = 1e18  # bytes, operations or tokens per second
_TEXT_LIMIT = 1000  # characters
_LIST_LIMIT = 64


@dataclass(frozen=True, kw_only=True)
class Figure:
    value: float  # in base units: bytes or operations per second
    source: str  # a URL that can be opened


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A published result of llama.cpp."""

    what: str  # "llama 7B Q4_0 pp512"
    tokens_per_second: float
    source: str


@dataclass(frozen=True, kw_only=True)
class ProfileCpu:
    model: str
    architecture: str  # platform.machine(): "x86_64", "aarch64"
    physical_cores: int
    logical_cores: int
    operations_per_second: (
        Figure | None
    )  # all cores in a whole prompt of a quantized model; a multiply-add is 2


@dataclass(frozen=True, kw_only=True)
class ProfileRam:
    total_bytes: int
    system_bytes: int  # held by the operating system and what else runs
    bandwidth_bytes_per_second: Figure | None  # of all channels, in theory
    type: str | None  # "DDR4"


@dataclass(frozen=True, kw_only=True)
class ProfileGpu:
    name: str
    total_bytes: int
    reserved_bytes: int  # held by the driver and the display
    bandwidth_bytes_per_second: Figure | None  # of its memory, in theory
    operations_per_second: (
        Figure | None
    )  # dense FP16 tensor cores with FP32 accumulation; a multiply-add is 2
    link_bytes_per_second: Figure | None  # from the host, one direction
    compute_capability: str | None
    measured: tuple[Measured, ...]


@dataclass(frozen=True, kw_only=True)
class ProfileDisk:
    read_bytes_per_second: Figure | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    name: str
    description: str
    cpu: ProfileCpu
    ram: ProfileRam
    gpus: tuple[ProfileGpu, ...]
    disk: ProfileDisk | None

    def to_machine(self) -> Machine:
        """As the probe would describe it, idle. What a file cannot know is empty or None."""
        return Machine(
            system=f"profile {self.name}",
            cpu=Cpu(
                model=self.cpu.model,
                architecture=self.cpu.architecture,
                physical_cores=self.cpu.physical_cores,
                logical_cores=self.cpu.logical_cores,
                instruction_sets=(),
            ),
            ram=Ram(
                total_bytes=self.ram.total_bytes,
                available_bytes=self.ram.total_bytes - self.ram.system_bytes,
                physical_bytes=self.ram.total_bytes,
                cgroup_limit_bytes=None,
                swap_total_bytes=0,
                swap_used_bytes=0,
                type=self.ram.type,
                megatransfers_per_second=None,
            ),
            gpus=tuple(_machine_gpu(index, gpu) for index, gpu in enumerate(self.gpus)),
            gpu_note=None,
            disks=(),
        )


def _machine_gpu(index: int, gpu: ProfileGpu) -> Gpu:
    return Gpu(
        index=index,
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        used_bytes=gpu.reserved_bytes,
        free_bytes=gpu.total_bytes - gpu.reserved_bytes,
        others_bytes=None,
        driver="unknown",
        cuda=None,
        compute_capability=gpu.compute_capability,
        link=None,
    )


def profile_names() -> tuple[str, ...]:
    """The built-in profiles, sorted."""
    folder = resources.files("memfit.hardware") / "profiles"
    return tuple(sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".json")))


def read_profile(name_or_path: str) -> Profile:
    """A built-in profile by its name, or any file whose name ends in .json.

    Raises:
        UsageError: no such profile or file, or something in it is wrong; names the field.
    """
    where = f"machine profile {_shown(name_or_path)}"
    if name_or_path in profile_names():
        file = resources.files("memfit.hardware") / "profiles" / f"{name_or_path}.json"
        return _parse(file.read_bytes(), where)
    if not name_or_path.endswith(".json"):
        names = ", ".join(profile_names())
        raise UsageError(f"no {where}; there are {names}, or give the path of a .json file")
    return _parse(_file_bytes(Path(name_or_path), where), where)


def _file_bytes(path: Path, where: str) -> bytes:
    try:
        if not path.is_file():  # opening a pipe would wait for a writer
            raise UsageError(f"no {where}: there is no such file; built in are {', '.join(profile_names())}")
        with path.open("rb") as file:
            content = file.read(_FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {where}: {error.strerror}") from None
    if len(content) > _FILE_LIMIT_BYTES:
        raise UsageError(f"cannot read {where}: it is larger than {format_bytes(_FILE_LIMIT_BYTES)}")
    return content


def _parse(content: bytes, where: str) -> Profile:
    try:
        value = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {where}: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise UsageError(f"cannot read {where}: it is nested too deeply") from None
    except ValueError as error:  # not JSON, or from one of the two hooks
        raise UsageError(f"cannot read {where}: {readable(str(error), most=200)}") from None
    fields = _Fields(value, where, "", {"name", "description", "cpu", "ram", "gpus", "disk"})
    return Profile(
        name=fields.text("name"),
        description=fields.text("description"),
        cpu=_cpu(fields.child("cpu", _keys("model architecture physical_cores logical_cores") | _OPERATIONS)),
        ram=_ram(fields.child("ram", _keys("total_bytes system_bytes type") | _BANDWIDTH)),
        gpus=tuple(_gpu(gpu) for gpu in fields.children("gpus", _GPU_KEYS)),
        disk=None if fields.is_null("disk") else _disk(fields.child("disk", {"read_bytes_per_second"})),
    )


def _keys(names: str) -> set[str]:
    return set(names.split())


_OPERATIONS = {"operations_per_second"}
_BANDWIDTH = {"bandwidth_bytes_per_second"}
_GPU_KEYS = _keys("name total_bytes reserved_bytes compute_capability link_bytes_per_second measured")
_GPU_KEYS |= _OPERATIONS | _BANDWIDTH


class _Fields:
    """One object of the file: exactly the `keys`, and a "note" for people if its author likes."""

    def __init__(self, value: Any, where: str, field: str, keys: set[str]) -> None:
        self._where, self._field = where, field
        if not isinstance(value, dict):
            self.refuse("", value, "an object")
        self._value: dict[str, Any] = value
        for key in value.keys() - keys - {"note"}:
            names = ", ".join(sorted(keys | {"note"}))
            raise UsageError(f"{where}: {self.path(key)} is not a field; here are {names}")
        for key in sorted(keys - value.keys()):
            raise UsageError(f"{where}: {self.path(key)} is missing")
        if "note" in value:
            self.text("note")

    def path(self, key: str) -> str:
        return readable(f"{self._field}.{key}".strip("."), most=200, kept="") or "the whole file"

    def refuse(self, key: str, found: Any, needed: str) -> NoReturn:
        raise UsageError(f"{self._where}: {self.path(key)}: got {_shown(found)}, needed {needed}")

    def is_null(self, key: str) -> bool:
        return self._value[key] is None

    def text(self, key: str) -> str:
        value = self._value[key]
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _TEXT_LIMIT:
            self.refuse(key, value, f"one line of text, at most {_TEXT_LIMIT} characters")
        return value

    def url(self, key: str) -> str:
        value = self.text(key)
        if not value.startswith(("https://", "http://")) or " " in value:
            self.refuse(key, value, "a URL: https://…")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._value[key]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(key, value, f"a whole number from {low} to {high}")
        return value

    def rate(self, key: str) -> float:
        value = self._value[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= _RATE_LIMIT:  # which no NaN passes
            self.refuse(key, value, f"a number above 0 and up to {_RATE_LIMIT:g}")
        return float(value)

    def figure(self, key: str) -> Figure | None:
        value = self._value[key]
        unknown = isinstance(value, dict) and value.get("value", 0) is None
        fields = self.child(key, {"value", "note"} if unknown else {"value", "source"})
        return None if unknown else Figure(value=fields.rate("value"), source=fields.url("source"))

    def child(self, key: str, keys: set[str]) -> _Fields:
        return _Fields(self._value[key], self._where, self.path(key), keys)

    def children(self, key: str, keys: set[str]) -> list[_Fields]:
        value = self._value[key]
        if not isinstance(value, list) or len(value) > _LIST_LIMIT:
            self.refuse(key, value, f"a list of at most {_LIST_LIMIT}")
        return [
            _Fields(each, self._where, f"{self.path(key)}[{index}]", keys) for index, each in enumerate(value)
        ]


def _cpu(fields: _Fields) -> ProfileCpu:
    physical = fields.integer("physical_cores", 1, _CORES_LIMIT)
    return ProfileCpu(
        model=fields.text("model"),
        architecture=fields.text("architecture"),
        physical_cores=physical,
        logical_cores=fields.integer("logical_cores", physical, _CORES_LIMIT),
        operations_per_second=fields.figure("operations_per_second"),
    )


def _ram(fields: _Fields) -> ProfileRam:
    total = fields.integer("total_bytes", 1, _MEMORY_LIMIT_BYTES)
    return ProfileRam(
        total_bytes=total,
        system_bytes=fields.integer("system_bytes", 0, total),
        bandwidth_bytes_per_second=fields.figure("bandwidth_bytes_per_second"),
        type=None if fields.is_null("type") else fields.text("type"),
    )


def _gpu(fields: _Fields) -> ProfileGpu:
    total = fields.integer("total_bytes", 1, _MEMORY_LIMIT_BYTES)
    return ProfileGpu(
        name=fields.text("name"),
        total_bytes=total,
        reserved_bytes=fields.integer("reserved_bytes", 0, total),
        bandwidth_bytes_per_second=fields.figure("bandwidth_bytes_per_second"),
        operations_per_second=fields.figure("operations_per_second"),
        link_bytes_per_second=fields.figure("link_bytes_per_second"),
        compute_capability=None
        if fields.is_null("compute_capability")
        else fields.text("compute_capability"),
        measured=tuple(
            Measured(
                what=each.text("what"),
                tokens_per_second=each.rate("tokens_per_second"),
                source=each.url("source"),
            )
            for each in fields.children("measured", _keys("what tokens_per_second source"))
        ),
    )


def _disk(fields: _Fields) -> ProfileDisk:
    return ProfileDisk(read_bytes_per_second=fields.figure("read_bytes_per_second"))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice in one object")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON has")


def _shown(found: Any) -> str:
    """A stranger's value in a message: short and harmless."""
    if isinstance(found, dict):
        return "an object"
    if isinstance(found, list):
        return "a list"
    if isinstance(found, int) and abs(found) >= 10**30:
        return "a number of more than 30 digits"  # Python refuses to print very long ones
    return readable(json.dumps(found, ensure_ascii=False), most=100, kept="")
