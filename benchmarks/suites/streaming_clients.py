"""Clients that stream chat completions, many at a time on one thread: a small share of the CPU they measure.

What they know of a server is its port. Tokens are counted by the usage that the server sends last.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

TOKENS = 96  # of an answer, at most
_PATIENCE_SECONDS = 300.0
_SUBJECTS = (
    "the sea",
    "old maps",
    "bread",
    "a lighthouse",
    "winter",
    "two brothers",
    "bees",
    "a river",
    "glass",
)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One answer."""

    text: str = ""
    tokens: int = 0
    first_seconds: float | None = None  # from the request to the first delta with text
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Load:
    requests: int
    tokens: int
    seconds: float
    first_seconds: tuple[float, ...]  # sorted
    problems: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def first_token_p50(self) -> float:
        return _share(self.first_seconds, 0.5)

    @property
    def first_token_p95(self) -> float:
        return _share(self.first_seconds, 0.95)


def stream(port: int, messages: list[dict[str, str]], tokens: int) -> Stream:
    return asyncio.run(_stream(port, messages, tokens))


def load(port: int, clients: int, seconds: float) -> Load:
    """`clients` at a time, each asking again as soon as it was answered; those under way at the end are
    waited for, and what they bring counts as their time does."""
    begun = time.perf_counter()
    done = asyncio.run(_load(port, clients, begun + seconds))
    spent = time.perf_counter() - begun
    return Load(
        requests=len(done),
        tokens=sum(one.tokens for one in done),
        seconds=spent,
        first_seconds=tuple(sorted(one.first_seconds for one in done if one.first_seconds is not None)),
        problems=tuple(one.problem for one in done if one.problem),
    )


async def _load(port: int, clients: int, until: float) -> list[Stream]:
    done: list[Stream] = []

    async def client(number: int) -> None:
        turn = 0
        while time.perf_counter() < until:
            subject = _SUBJECTS[(number + turn) % len(_SUBJECTS)]
            asked = f"Story {number * 1000 + turn}. Write a story about {subject}, as long as you can."
            done.append(await _stream(port, [{"role": "user", "content": asked}], TOKENS))
            turn += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return done


async def _stream(port: int, messages: list[dict[str, str]], tokens: int) -> Stream:
    asked = {"model": "demo", "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
    body = json.dumps(asked | {"stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        return await asyncio.wait_for(_answered(port, head.encode() + body), _PATIENCE_SECONDS)
    except (OSError, asyncio.TimeoutError, ValueError) as problem:
        return Stream(problem=f"{type(problem).__name__}: {problem}")


async def _answered(port: int, request: bytes) -> Stream:
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await _read(reader, begun)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, begun: float) -> Stream:
    """The events, whichever chunks they come in: lines that are none are a chunk's length."""
    status = (await reader.readline()).split()
    if len(status) < 2 or status[1] != b"200":
        return Stream(problem=f"{b' '.join(status)!r} {(await reader.read(4096))[-200:]!r}")
    text, is_whole = "", False
    first: float | None = None
    tokens: int | None = None  # until the usage comes
    async for line in reader:
        if line.strip() == b"data: [DONE]":
            is_whole = True
        elif line.startswith(b"data: "):
            event: dict[str, Any] = json.loads(line[6:])
            if "error" in event:
                return Stream(problem=str(event["error"])[:200])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            delta = event["choices"][0]["delta"].get("content") if event["choices"] else None
            if delta:
                first = time.perf_counter() - begun if first is None else first
                text += delta
    # A model may end at once: some servers count its end as a token, others count none.
    problem = "" if is_whole and tokens is not None else "a stream without its end"
    return Stream(text=text, tokens=tokens or 0, first_seconds=first, problem=problem)


def _share(values: tuple[float, ...], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0
