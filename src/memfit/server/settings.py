"""What a server is told: where it listens, whom it trusts, and how much it takes."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace

from memfit.engines.requests import Sampling
from memfit.errors import UsageError, WrongValueError
from memfit.units import KIB, MIB

__all__ = ["Limits", "Settings", "is_loopback"]

_COPIES = 8  # of a body, while it is read here and in the worker
_TOLD = 64  # bytes that one of a text takes whose tokens are told
_VALUE_BYTES = 200  # that one of JSON takes at most, its text aside
_LEAST_BODY = 256 * KIB
_LEAST_VALUES = 16_384
_ORIGINS = re.compile(r"\*|localhost|null|[a-z][a-z0-9+.-]*://[^/?#\s]+")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask of a server."""

    body_bytes: int = 32 * MIB
    bodies_bytes: int = 64 * MIB  # of all calls together
    described_bytes: int = MIB  # of a body whose text's tokens are told
    body_values: int = 2**18  # of JSON: each takes up to a hundred times what it is written with
    header_bytes: int = 64 * 1024
    depth: int = 128  # of nested JSON
    connections: int = 1024
    queue: int = 128  # calls that wait beside those that run
    header_seconds: float = 30.0  # within which a call's headers have to come
    body_seconds: float = 60.0  # within which a body has to come
    stall_seconds: float = 120.0  # that a client may leave an answer unread
    call_seconds: float = 3600.0  # that an answer may take

    @property
    def of_descriptions(self) -> Limits:
        """For calls whose text's tokens are told."""
        return replace(self, body_bytes=min(self.body_bytes, self.described_bytes))

    def within(self, spare_bytes: int) -> Limits:
        """No larger than what the budget has left has room for; ordinary calls find room in any."""
        return replace(
            self,
            body_bytes=min(self.body_bytes, max(_LEAST_BODY, spare_bytes // _COPIES)),
            described_bytes=min(self.described_bytes, max(_LEAST_BODY, spare_bytes // _TOLD)),
            bodies_bytes=min(self.bodies_bytes, max(4 * _LEAST_BODY, spare_bytes // 2)),
            body_values=min(self.body_values, max(_LEAST_VALUES, spare_bytes // _VALUE_BYTES)),
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One server's."""

    hosts: tuple[str, ...] = ("127.0.0.1",)
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    insecure: bool = False  # no key is needed, whoever can reach it
    cors: tuple[str, ...] = ()  # origins of pages that may use it; "*": all, "localhost": this machine's
    names: tuple[str, ...] = ()  # the model's; the first is the one that answers have
    tags: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)  # where a call says nothing else
    shows_slots: bool = True
    shows_metrics: bool = True
    logs_prompts: bool = False
    verbose: bool = False  # answers tell their prompts
    thinks: bool | None = None  # of templates that can be told
    parses_reasoning: bool = True
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise WrongValueError("port", f" is {self.port}; it must be between 0 and 65535", got=self.port)
        if not all(key.strip() for key in self.api_keys):
            raise WrongValueError("api_key", " is empty: everybody has that one", got="")
        if any(key != key.strip() for key in self.api_keys):
            raise WrongValueError("api_key", " begins or ends with a space, which headers lose")
        for origin in self.cors:
            if not _ORIGINS.fullmatch(origin):
                raise WrongValueError(
                    "cors", f" is {origin!r}; needed https://page.org, localhost or *", got=origin
                )
        outside = [one for one in self.hosts if not is_loopback(one)]
        if outside and not self.api_keys and not self.insecure:
            raise UsageError(
                f"--host {outside[0]} lets other machines in: give --api-key KEY, or --insecure to let in "
                "whoever can reach it"
            )


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    host = host.lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
