"""The Anthropic client's own tests of messages, counting of tokens included."""

from __future__ import annotations

from client_tests import Client, Part, run_part
from limits import Limits
from results import Result
from servers import running

CLIENT = Client(
    requirement="anthropic==2.14.0",
    needs=(
        *("pytest", "pytest-asyncio", "pytest-xdist>=3.6.1", "inline-snapshot>=0.28.0", "respx"),
        *("http-snapshot[httpx]==0.1.9", "anthropic[aiohttp]", "dirty-equals"),
    ),
    plugins=("tests._alias_httpx",),
)
MESSAGES = Part(name="anthropic messages", path="test_messages.py", total=65)


def run(server: str, limits: Limits) -> list[Result]:
    with running(server, context=4096, parallel=2) as one:
        return [run_part(CLIENT, MESSAGES, one.base)]
