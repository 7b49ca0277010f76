"""What a memfit server tells of itself: its plan and what is held of it (GET /plan), whom it answers and how
fast (GET /activity). Trusts nothing that comes, for anybody may listen at an address."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from memfit.closing import Closing
from memfit.errors import EngineError, MemfitError, UsageError, WrongValueError, readable
from memfit.strict_json import JsonReader, Length, parse_json
from memfit.units import MIB

if TYPE_CHECKING:
    import httpx2

__all__ = ["KEY_MISSING", "Answered", "Server", "ServerState", "Tier", "parse_address"]

_PORT = 8080  # serve's own
_CONNECT_SECONDS, _SILENCE_SECONDS, _WHOLE_SECONDS = 1.0, 2.0, 4.0
_MOST_BYTES = 4 * MIB  # of an answer; a plan has tens of KiB
_SPEED_SECONDS = 2.0  # over which tokens a second are counted: workers tell of theirs twice a second
_LEAST_SECONDS = 1e-6
_PARTS = ("weights", "kv_cache", "compute", "overhead")
_HOST = re.compile(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", re.ASCII)
_FORMS = "http://127.0.0.1:8080, 127.0.0.1:8080 or :8080"
KEY_MISSING = "it wants an API key: --api-key KEY, or MEMFIT_API_KEY"

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One tier of a running plan. Null: nobody there measures it."""

    name: str
    kind: str
    budget_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    overhead_bytes: int
    total_bytes: int  # as predicted
    held_bytes: int | None = None
    peak_bytes: int | None = None

    @property
    def parts(self) -> dict[str, int]:
        return {name: getattr(self, f"{name}_bytes") for name in _PARTS}

    @property
    def level(self) -> float:
        """How full it is: 1.0 is the whole budget."""
        held = self.total_bytes if self.held_bytes is None else self.held_bytes
        return held / self.budget_bytes if self.budget_bytes else 0.0


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The last answers of a server, together."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of these, held by the KV cache
    prompt_tokens_per_second: float | None = None  # of those that were computed
    generation_tokens_per_second: float | None = None  # of one answer


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """A server at one moment."""

    address: str
    error: MemfitError | None = None  # why nothing else is known
    model: str = ""
    quantization: str = ""
    engine: str = ""
    state: str = ""  # "loading", "ready"
    context: int = 0
    parallel: int = 0
    kv_type: str | None = None
    tiers: tuple[Tier, ...] = ()
    predicted: Mapping[str, float | None] | None = None  # tokens a second: prompt, generation, together
    running: int = 0
    waiting: int = 0
    cells_in_use: int = 0  # tokens in the KV cache, prefixes of earlier requests included
    restarts: int = 0
    generated_tokens: int = 0
    tokens_per_second: float | None = None  # generated in the last seconds, by all sequences together
    answered: Answered = Answered()


def parse_address(text: str) -> str:
    """`http://127.0.0.1:8080` of that, of `127.0.0.1:8080`, and of `:8080`.

    Raises:
        WrongValueError: it is no address.
    """
    text = f":{text}" if text.isdecimal() else text
    has_scheme = "://" in text
    try:
        parts = urlsplit(text if has_scheme else f"http://{text}")
        host, port = parts.netloc.rpartition("@")[2], parts.port
    except ValueError:
        raise _no_address(text) from None
    if port is not None:
        host = host.rpartition(":")[0]
    host = host.removesuffix(":") or ("" if has_scheme else "127.0.0.1")
    beside = parts.query or parts.fragment or "@" in parts.netloc or parts.path.strip("/")
    if parts.scheme not in ("http", "https") or beside or not _HOST.fullmatch(host) or port == 0:
        raise _no_address(text)
    if port is None and not has_scheme:
        port = _PORT
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")


def _no_address(text: str) -> WrongValueError:
    got = readable(text, most=200, kept="")
    said = f" {got!r} is no server's; write {_FORMS}"
    return WrongValueError("address", said, got=got, needed="http://HOST:PORT", field="ADDRESS")


class Server(Closing):
    """Asks one server again and again; for one thread. `key` is sent where it wants one."""

    def __init__(self, address: str, key: str | None = None) -> None:
        self.address = address
        self._key = key
        self._reader = JsonReader(address, line=Length(1000))
        self._client = _client(address)
        self._generated: deque[tuple[float, int]] = deque()  # tokens so far, by time

    def close(self) -> None:
        self._client.close()

    def look(self) -> ServerState:
        """Never fails: what is wrong stands in the state's `error`."""
        try:
            plan, activity = self._ask("/plan"), self._ask("/activity")
            return self._state(plan, activity)
        except UsageError as error:  # what came is none of ours
            self._generated.clear()
            said = f"what answers at {self.address} is no memfit server of this version: {error}"
            return ServerState(address=self.address, error=EngineError(said, field=self.address))
        except MemfitError as error:
            self._generated.clear()
            return ServerState(address=self.address, error=error)

    def _ask(self, path: str) -> dict[str, Any]:
        import httpx2

        try:
            status, body = self._get(path)
        except httpx2.ConnectError:
            raise self._error("nobody answers; memfit serve MODEL starts a server") from None
        except httpx2.TimeoutException:
            raise self._error("it is there, and does not answer") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, RuntimeError) as error:  # the last: we are being closed
            raise self._error(readable(str(error), most=200, kept="") or type(error).__name__) from None
        if status == 401:
            raise self._error("the API key is wrong" if self._key else KEY_MISSING)
        if status != 200:
            raise self._error(f"{path} answers {status}; is it a memfit server?")
        found = parse_json(body, path)
        if not isinstance(found, dict):
            self._reader.refuse(path, found, "an object")
        return found

    def _get(self, path: str) -> tuple[int, bytes]:
        import httpx2

        # As bytes: a key may have letters that httpx2 does not write.
        headers = {b"Authorization": b"Bearer " + self._key.encode()} if self._key else {}
        ends = time.monotonic() + _WHOLE_SECONDS
        data = bytearray()
        # httpx2's own limits are of each read: a head that comes a letter at a time would never end.
        closing = threading.Timer(_WHOLE_SECONDS, self._client.close)
        closing.daemon = True
        closing.start()
        try:
            with self._client.stream("GET", path, headers=headers) as answer:
                for part in answer.iter_raw():
                    data += part
                    if len(data) > _MOST_BYTES:
                        raise self._error(f"{path} sends more than {_MOST_BYTES >> 20} MiB")
                return answer.status_code, bytes(data)
        except (httpx2.HTTPError, RuntimeError):
            if time.monotonic() < ends:
                raise
            raise self._error("it answers too slowly") from None
        finally:
            closing.cancel()
            if self._client.is_closed:
                self._client = _client(self.address)

    def _error(self, said: str) -> EngineError:
        return EngineError(f"{self.address}: {said}", field=self.address)

    def _state(self, plan: dict[str, Any], activity: dict[str, Any]) -> ServerState:
        read = self._reader.read
        model = _object(self._reader, plan, "model")
        measured = {one.name: one for one in self._measured(plan)}
        predicted = _object(self._reader, plan, "predicted")
        generated = read(int, activity.get("generated_tokens"), "activity.generated_tokens")
        return ServerState(
            address=self.address,
            model=_line(model.get("name")),
            quantization=_line(model.get("quantization")),
            engine=_line(plan.get("engine")),
            state=_line(plan.get("state")),
            kv_type=read(str | None, plan.get("kv_type"), "plan.kv_type"),
            tiers=tuple(self._tier(*one, measured) for one in enumerate(_list(plan.get("tiers")))),
            predicted={
                name: self._rate(predicted.get(f"{name}_tokens_per_second"), f"plan.predicted.{name}")
                for name in ("prompt", "generation", "together")
            },
            generated_tokens=generated,
            tokens_per_second=self._speed_at(time.monotonic(), generated),
            answered=self._answered(_list(activity.get("recent"))),
            **{
                name: read(int, plan.get(name), f"plan.{name}")
                for name in ("context", "parallel", "running", "waiting", "cells_in_use", "restarts")
            },
        )

    def _measured(self, plan: dict[str, Any]) -> list[_Measured]:
        tiers = _list(_object(self._reader, plan, "measured").get("tiers"))
        return self._each(_Measured, tiers, "plan.measured.tiers")

    def _each(self, kind: type[_Kind], values: Sequence[Any], field: str) -> list[_Kind]:
        return [_picked(self._reader, kind, one, f"{field}[{index}]") for index, one in enumerate(values)]

    def _tier(self, index: int, value: Any, measured: Mapping[str, _Measured]) -> Tier:
        tier = _picked(self._reader, Tier, value, f"plan.tiers[{index}]", leaves=("held_bytes", "peak_bytes"))
        if found := measured.get(tier.name):
            return replace(tier, held_bytes=found.held_bytes, peak_bytes=found.peak_bytes)
        return tier

    def _rate(self, value: Any, field: str) -> float | None:
        if value is None:
            return None
        value = value.get("value") if isinstance(value, dict) else value
        return cast(float, self._reader.read(float, value, field))

    def _speed_at(self, now: float, generated: int) -> float | None:
        """Tokens a second since a while ago; None at first, and where the server was started anew."""
        seen = self._generated
        if seen and generated < seen[-1][1]:
            seen.clear()
        seen.append((now, generated))
        while len(seen) > 2 and now - seen[1][0] >= _SPEED_SECONDS:
            seen.popleft()
        began, before = seen[0]
        return (generated - before) / (now - began) if now > began else None

    def _answered(self, recent: Sequence[Any]) -> Answered:
        answers = self._each(_Recent, recent, "activity.recent")
        prompt = sum(one.prompt_tokens for one in answers)
        cached = sum(one.cached_tokens for one in answers)
        generated = sum(one.completion_tokens for one in answers)
        prompt_seconds = sum(one.prompt_seconds for one in answers)
        seconds = sum(one.generation_seconds for one in answers)
        return Answered(
            answers=len(answers),
            prompt_tokens=prompt,
            cached_tokens=cached,
            prompt_tokens_per_second=_rate_of(prompt - cached, prompt_seconds),
            generation_tokens_per_second=_rate_of(generated, seconds),
        )


@dataclass(frozen=True, kw_only=True)
class _Measured:
    name: str
    held_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class _Recent:
    """One of /activity's last answers."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prompt_seconds: float
    generation_seconds: float


def _rate_of(tokens: int, seconds: float) -> float | None:
    """None where no clock could have measured it: by next to nothing it would be infinite."""
    return tokens / seconds if seconds >= _LEAST_SECONDS else None


def _client(address: str) -> httpx2.Client:
    """Goes nowhere but there: no proxy, no redirect."""
    import httpx2

    return httpx2.Client(
        base_url=address,
        timeout=httpx2.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS),
        follow_redirects=False,
        trust_env=False,
        headers={"Accept-Encoding": "identity"},
    )


def _picked(
    reader: JsonReader, kind: type[_Kind], value: Any, field: str, leaves: Sequence[str] = ()
) -> _Kind:
    """The fields of a dataclass, of an object that may have others."""
    if not isinstance(value, dict):
        reader.refuse(field, value, "an object")
    names = {one.name for one in fields(kind)} - set(leaves)  # type: ignore[arg-type]
    found: _Kind = reader.read_object(kind, {name: value[name] for name in names & value.keys()}, field)
    return found


def _object(reader: JsonReader, plan: dict[str, Any], name: str) -> dict[str, Any]:
    value = plan.get(name)
    if not isinstance(value, dict):
        reader.refuse(f"plan.{name}", value, "an object")
    return value


def _list(value: Any) -> list[Any]:
    return value[:1000] if isinstance(value, list) else []


def _line(value: Any) -> str:
    """A name, as it can be shown."""
    return readable(value, most=200, kept="") if isinstance(value, str) else ""
