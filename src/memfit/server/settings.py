"""What a server is told: where it listens, whom it trusts, and how much it takes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from memfit.engines.requests import Sampling
from memfit.errors import UsageError, WrongValueError
from memfit.memory.serving import MOST_VALUES, body_limit_bytes, held_limit_bytes
from memfit.units import MIB

__all__ = ["Limits", "Settings", "is_loopback"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask of a server."""

    body_bytes: int = 32 * MIB
    bodies_bytes: int = 64 * MIB  # of all calls together
    body_values: int = MOST_VALUES  # of JSON: each takes up to a hundred times what it is written with
    header_bytes: int = 64 * 1024
    depth: int = 128  # of nested JSON
    connections: int = 1024
    queue: int = 128  # calls that wait beside those that run
    header_seconds: float = 30.0  # within which a call's headers have to come
    body_seconds: float = 60.0  # within which a body has to come
    stall_seconds: float = 120.0  # that a client may leave an answer unread
    call_seconds: float = 3600.0  # that an answer may take

    @classmethod
    def of_context(cls, context: int) -> Limits:
        """As a plan with this context counts them."""
        return cls(body_bytes=body_limit_bytes(context), bodies_bytes=held_limit_bytes(context))


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
