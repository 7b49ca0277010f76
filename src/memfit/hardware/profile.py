"""Machine profiles: a machine that is not this one, described by a JSON file.

The built-in profiles in `profiles/` are files in the very format that a user writes, with a source for each
figure, which a user may leave out. An unknown figure is {"value": null, "note": "why"} and becomes None;
whoever predicts has to leave it out. Knows nothing of models, and judges no figure beyond its type and range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from memfit.errors import UsageError, readable
from memfit.hardware.machine import Cpu, Gpu, Machine, Ram
from memfit.strict_json import Fields, parse_json, read_bytes, shown

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


@dataclass(frozen=True, kw_only=True)
class Figure:
    value: float  # in base units: bytes or operations per second
    source: str | None  # a URL that can be opened; None: whoever wrote the file states it


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A published result of llama.cpp."""

    what: str  # "llama 7B Q4_0 pp512"
    tokens_per_second: float
    source: str | None


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
    fields = Fields(parse_json(content, where), where, "", _keys("name description cpu ram gpus disk"))
    figures = _Figures(may_state=own_file is not None)
    return Profile(
        name=fields.text("name"),
        description=fields.text("description"),
        cpu=_cpu(
            fields.child("cpu", _keys("model architecture physical_cores logical_cores") | _OPERATIONS),
            figures,
        ),
        ram=_ram(fields.child("ram", _keys("total_bytes system_bytes type") | _BANDWIDTH), figures),
        gpus=tuple(_gpu(gpu, figures) for gpu in fields.children("gpus", _GPU_KEYS)),
        disk=None
        if fields.is_null("disk")
        else _disk(fields.child("disk", {"read_bytes_per_second"}), figures),
        stated_in=own_file if figures.stated else None,
    )


class _Figures:
    """Reads what needs a source, or where figures may be stated does not."""

    def __init__(self, *, may_state: bool) -> None:
        self.needed, self.optional = (set[str](), {"source"}) if may_state else ({"source"}, set[str]())
        self._reason = set[str]() if may_state else {"note"}  # why a figure is unknown
        self.stated = False  # whether one has no source

    def read(self, parent: Fields, key: str) -> Figure | None:
        value = parent.value(key)
        if isinstance(value, dict) and value.get("value", 0) is None:
            parent.child(key, {"value", *self._reason})
            return None
        fields = parent.child(key, {"value", *self.needed}, optional=self.optional)
        return Figure(value=fields.rate("value"), source=self.source(fields))

    def source(self, fields: Fields) -> str | None:
        if fields.has("source"):
            return fields.url("source")
        self.stated = True
        return None


def _keys(names: str) -> set[str]:
    return set(names.split())


_OPERATIONS = {"operations_per_second"}
_BANDWIDTH = {"bandwidth_bytes_per_second"}
_GPU_KEYS = _keys("name total_bytes reserved_bytes compute_capability link_bytes_per_second measured")
_GPU_KEYS |= _OPERATIONS | _BANDWIDTH


def _cpu(fields: Fields, figures: _Figures) -> ProfileCpu:
    physical = fields.integer("physical_cores", 1, _CORES_LIMIT)
    return ProfileCpu(
        model=fields.text("model"),
        architecture=fields.text("architecture"),
        physical_cores=physical,
        logical_cores=fields.integer("logical_cores", physical, _CORES_LIMIT),
        operations_per_second=figures.read(fields, "operations_per_second"),
    )


def _ram(fields: Fields, figures: _Figures) -> ProfileRam:
    total = fields.integer("total_bytes", 1, _MEMORY_LIMIT_BYTES)
    return ProfileRam(
        total_bytes=total,
        system_bytes=fields.integer("system_bytes", 0, total),
        bandwidth_bytes_per_second=figures.read(fields, "bandwidth_bytes_per_second"),
        type=None if fields.is_null("type") else fields.text("type"),
    )


def _gpu(fields: Fields, figures: _Figures) -> ProfileGpu:
    total = fields.integer("total_bytes", 1, _MEMORY_LIMIT_BYTES)
    return ProfileGpu(
        name=fields.text("name"),
        total_bytes=total,
        reserved_bytes=fields.integer("reserved_bytes", 0, total),
        bandwidth_bytes_per_second=figures.read(fields, "bandwidth_bytes_per_second"),
        operations_per_second=figures.read(fields, "operations_per_second"),
        link_bytes_per_second=figures.read(fields, "link_bytes_per_second"),
        compute_capability=None
        if fields.is_null("compute_capability")
        else fields.text("compute_capability"),
        measured=tuple(_measured(fields, figures)),
    )


def _measured(fields: Fields, figures: _Figures) -> Iterator[Measured]:
    keys = _keys("what tokens_per_second") | figures.needed
    for each in fields.children("measured", keys, optional=figures.optional):
        yield Measured(
            what=each.text("what"),
            tokens_per_second=each.rate("tokens_per_second"),
            source=figures.source(each),
        )


def _disk(fields: Fields, figures: _Figures) -> ProfileDisk:
    return ProfileDisk(read_bytes_per_second=figures.read(fields, "read_bytes_per_second"))
