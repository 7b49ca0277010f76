"""A browser, and a server with the demo model that it looks at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

_CHROMIUM = shutil.which("chromium")
# Nothing but this machine can be reached, so that what a page fetches from outside fails.
_OPTIONS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _CHROMIUM is None:
        for item in items:
            if "browser" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="there is no chromium here"))


@contextmanager
def serving(**environment: str) -> Iterator[str]:
    """The address of a server, once its model is loaded."""
    command = [
        sys.executable,
        "-m",
        "memfit",
        "serve",
        "demo",
        "--port",
        "0",
        "--ctx",
        "2048",
        "--ram",
        "1GiB",
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stderr
            found = ""
            for line in process.stderr:
                if "ready: " in line:
                    found = line.split()[-1]
                    break
            yield found
        finally:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=_CHROMIUM, args=_OPTIONS)
        yield found
        found.close()


@pytest.fixture
def complaints() -> list[str]:
    """Of the page. A test takes out those that it expects."""
    return []


@pytest.fixture
def page(browser: Any, address: str, complaints: list[str]) -> Iterator[Any]:
    """A page of a new user's; whatever it complains of fails the test."""
    context = browser.new_context(
        locale="en-US", viewport={"width": 1200, "height": 800}, reduced_motion="reduce"
    )
    found = context.new_page()
    found.on(
        "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
    )
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.goto(address)
    found.wait_for_selector(".composer")
    yield found
    context.close()
    assert not complaints
