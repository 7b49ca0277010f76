"""The library as the server's event loop sees it: names of clients, and how many processes at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from memfit.errors import UsageError
from memfit.server import library as module
from memfit.server.library import Library, library_name


@pytest.mark.parametrize(
    "name", ["hf:a\0b/c", "hf:a\nb/c", "https://a/\x1b.gguf", f"hf:{'a' * 200_000}/b"], ids=repr
)
def test_a_name_that_no_command_line_takes_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        library_name(name)
    assert caught.value.field == "model" and len(str(caught.value)) < 1000


def test_repositories_are_listed_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    async def answer(*_: str, **__: str) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return {}

    async def ask() -> None:
        library = Library()
        await asyncio.gather(*(library.choices(f"hf:org/{number}") for number in range(9)))

    monkeypatch.setattr(module, "helper_answer", answer)
    asyncio.run(ask())
    assert most == 1
