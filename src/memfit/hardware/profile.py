"""Machine profiles: a machine that is not this one, described by a JSON file (`profiles/*.json`, or a
user's).

The built-in profiles in `profiles/` are files in the very format that a user writes, with a source for each
figure, which a user may leave out. An unknown figure is {"value": null, "note": "why"} and becomes None;
whoever predicts has to leave it out. Knows nothing of models, and judges no figure beyond its type and range.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from memfit.errors import UsageError, WrongValueError, readable
from memfit.hardware.machine import Cpu, Gpu, Machine, Ram
from memfit.strict_json import Between, JsonReader, Matching, parse_json, read_bytes, shown

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

_MEMORY_LIMIT_BYTES = 2**50
_CORES_LIMIT = 4096
_Cores = Annotated[int, Between(1, _CORES_LIMIT)]
_Memory = Annotated[int, Between(1, _MEMORY_LIMIT_BYTES)]
_Rate = Annotated[float, Between(0, 1e18, above=True)]
_Source = Annotated[str, Matching("https?://[^ ]*", "a URL: https://…")]


@dataclass(frozen=True, kw_only=True)
class Figure:
    value: _Rate  # in base units: bytes or operations per second
    source: _Source | None  # can be opened; None: whoever wrote the file states it


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A published result of llama.cpp."""

    what: str  # "llama 7B Q4_0 pp512"
    tokens_per_second: _Rate
    source: _Source | None


@dataclass(frozen=True, kw_only=True)
class ProfileCpu:
    model: str
    architecture: str  # platform.machine(): "x86_64", "aarch64"
    physical_cores: _Cores
    logical_cores: _Cores
    # Of all cores in a whole prompt of a quantized model; a multiply-add is 2.
    operations_per_second: Figure | None

    def __post_init__(self) -> None:
        _require("logical_cores", self.logical_cores, self.physical_cores, _CORES_LIMIT)


@dataclass(frozen=True, kw_only=True)
class ProfileRam:
    total_bytes: _Memory
    system_bytes: int  # held by the operating system and what else runs
    bandwidth_bytes_per_second: Figure | None  # of all channels, in theory
    type: str | None  # "DDR4"

    def __post_init__(self) -> None:
        _require("system_bytes", self.system_bytes, 0, self.total_bytes)


@dataclass(frozen=True, kw_only=True)
class ProfileGpu:
    name: str
    total_bytes: _Memory
    reserved_bytes: int  # held by the driver and the display
    bandwidth_bytes_per_second: Figure | None  # of its memory, in theory
    # Of dense FP16 tensor cores with FP32 accumulation; a multiply-add is 2.
    operations_per_second: Figure | None
    link_bytes_per_second: Figure | None  # from the host, one direction
    compute_capability: str | None
    measured: tuple[Measured, ...]

    def __post_init__(self) -> None:
        _require("reserved_bytes", self.reserved_bytes, 0, self.total_bytes)


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
    stated_in: str | None = None  # the name of the file that states figures without a source

    @property
    def origin(self) -> str:
        """Whose figures they are, in words."""
        return f"as stated in {self.stated_in}" if self.stated_in else "published figures, with their sources"

    def to_machine(self) -> Machine:
        """As the probe would describe it, idle. What a file cannot know is empty or None."""
        return Machine(
            system=f"profile {self.name}",
            cpu=Cpu(
                model=self.cpu.model,
                architecture=self.cpu.architecture,
                physical_cores=self.cpu.physical_cores,
                logical_cores=self.cpu.logical_cores,
            ),
            ram=Ram(
                total_bytes=self.ram.total_bytes,
                available_bytes=self.ram.total_bytes - self.ram.system_bytes,
                physical_bytes=self.ram.total_bytes,
                type=self.ram.type,
            ),
            gpus=tuple(_machine_gpu(index, gpu) for index, gpu in enumerate(self.gpus)),
        )


def _machine_gpu(index: int, gpu: ProfileGpu) -> Gpu:
    return Gpu(
        index=index,
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        used_bytes=gpu.reserved_bytes,
        free_bytes=gpu.total_bytes - gpu.reserved_bytes,
        driver="unknown",
        compute_capability=gpu.compute_capability,
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
    where = f"machine profile {shown(name_or_path)}"
    if name_or_path in profile_names():
        file = resources.files("memfit.hardware") / "profiles" / f"{name_or_path}.json"
        return _parse(file.read_bytes(), where)
    if not name_or_path.endswith(".json"):
        names = ", ".join(profile_names())
        raise UsageError(f"no {where}; there are {names}, or give the path of a .json file")
    path = Path(name_or_path)
    content = read_bytes(path, where, f"; built in are {', '.join(profile_names())}")
    return _parse(content, where, own_file=readable(path.name, kept=""))


def _parse(content: bytes, where: str, *, own_file: str | None = None) -> Profile:
    """`own_file` is the name of a file that somebody wrote for a machine of their own."""
    reader = _ProfileReader(where, may_state=own_file is not None)
    keys = {part.name for part in fields(Profile)} - {"stated_in"}  # which is not the file's to say
    profile: Profile = reader.read(Profile, reader.keys(parse_json(content, where), "", keys))
    return replace(profile, stated_in=own_file if reader.has_stated else None)


class _ProfileReader(JsonReader):
    """Reads what needs a source, or where figures may be stated does not."""

    def __init__(self, where: str, *, may_state: bool) -> None:
        super().__init__(where)
        self._may_state = may_state
        self.has_stated = False  # whether a figure has no source

    def read(self, kind: Any, value: Any, field: str = "") -> Any:
        if kind == Figure | None:
            if isinstance(value, dict) and value.get("value", 0) is None:
                reason = set[str]() if self._may_state else {"note"}  # why it is unknown
                self.keys(value, field, {"value", *reason})
                return None
            kind = Figure
        if kind in (Figure, Measured) and self._may_state and isinstance(value, dict):
            self.has_stated |= value.get("source") is None
            value = {"source": None, **value}
        return super().read(kind, value, field)


def _require(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        needed = f"a whole number from {least} to {most}"
        raise WrongValueError(name, f": got {value}, needed {needed}", got=value, needed=needed)
