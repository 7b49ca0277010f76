"""What a plan was made for: the model's very bytes, the machine and the software. Values only; reads nothing.

Free memory is not in it, since that changes all the time. Nor is anything that could be a secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memfit.units import format_bytes

__all__ = ["FileMark", "Fingerprint", "NamedBytes"]

_SAME_RAM = 0.01  # another kernel keeps a few MiB more or less for itself


@dataclass(frozen=True, kw_only=True)
class FileMark:
    size_bytes: int
    sha256: str  # of its header and of samples of its tensors


@dataclass(frozen=True, kw_only=True)
class NamedBytes:
    name: str  # a GPU's, or HOST:PORT
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    memfit: str  # versions
    python: str
    engine: str  # its name and build
    profile: str | None  # the machine that was only imagined; None: this one
    cpu: str
    cores: int  # usable ones
    ram_bytes: int
    gpus: tuple[NamedBytes, ...]
    remote_devices: tuple[NamedBytes, ...]  # those that the plan uses, with what their RPC servers offer
    files: tuple[FileMark, ...]  # in shard order
    counts_parent: bool  # whether the command line's own process is in the plan

    def changes(self, now: Fingerprint) -> Iterator[str]:
        """What differs `now`, each as "NAME from OLD to NEW"."""
        if len(self.files) != len(now.files):
            yield f"the model's number of files from {len(self.files)} to {len(now.files)}"
        for number, (old, new) in enumerate(zip(self.files, now.files, strict=False), start=1):
            of = f" {number} of {len(self.files)}" if len(self.files) > 1 else ""
            if old.size_bytes != new.size_bytes:
                yield f"the model's file{of} from {old.size_bytes} to {new.size_bytes} bytes"
            elif old.sha256 != new.sha256:
                yield f"the content of the model's file{of} from {old.sha256[:12]} to {new.sha256[:12]}"
        for name, was, is_now in (
            ("Python", self.python, now.python),
            ("the engine's build", self.engine, now.engine),
            ("the CPU", self.cpu, now.cpu),
            ("usable cores", str(self.cores), str(now.cores)),
            ("GPUs", _listed(self.gpus), _listed(now.gpus)),
            ("what remote devices lend", _listed(self.remote_devices), _listed(now.remote_devices)),
        ):
            if was != is_now:
                yield f"{name} from {was} to {is_now}"
        if abs(self.ram_bytes - now.ram_bytes) > _SAME_RAM * self.ram_bytes:
            yield f"RAM from {format_bytes(self.ram_bytes)} to {format_bytes(now.ram_bytes)}"


def _listed(devices: tuple[NamedBytes, ...]) -> str:
    return ", ".join(f"{one.name} with {format_bytes(one.total_bytes)}" for one in devices) or "none"
