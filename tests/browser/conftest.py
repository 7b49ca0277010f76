"""A browser, and a server with the demo model that it looks at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

_CHROMIUM = shutil.which("chromium")
# Nothing but this machine can be reached, so that what a page fetches from outside fails.
_OPTIONS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
_TELLS_VIOLATIONS = """
addEventListener("securitypolicyviolation", ({violatedDirective, blockedURI}) =>
  console.error("violation", violatedDirective, blockedURI));
"""
_SERVE = (sys.executable, "-m", "memfit", "serve", "demo", "--port", "0", "--ctx", "2048", "--ram", "1GiB")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _CHROMIUM is None:
        for item in items:
            if "browser" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="there is no chromium here"))


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[str]:
    """The address of a server, once its model is loaded."""
    with subprocess.Popen(
        [*_SERVE, *options], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stderr
            yield next(line.split()[-1] for line in process.stderr if "ready: " in line)
        finally:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture(scope="session")
def served() -> Callable[..., AbstractContextManager[str]]:
    """Starts a server of these options; gives its address."""
    return serving


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
def complaints() -> Iterator[list[str]]:
    """What pages complain of, and what they ask of elsewhere. Whatever is left at the end fails the test."""
    found: list[str] = []
    yield found
    assert not found


@pytest.fixture
def context(browser: Any, complaints: list[str]) -> Iterator[Any]:
    """A new user's browser, whose pages' complaints are heard."""

    def hear(said: Any) -> None:
        if said.type in ("error", "warning"):
            complaints.append(said.text)

    def look(request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:")):
            complaints.append(request.url)

    found = browser.new_context(
        locale="en-US", viewport={"width": 1200, "height": 800}, reduced_motion="reduce"
    )
    found.add_init_script(_TELLS_VIOLATIONS)
    found.on("console", hear)
    found.on("weberror", lambda one: complaints.append(str(one.error)))
    found.on("request", look)
    yield found
    found.close()


@pytest.fixture
def page(context: Any, address: str) -> Any:
    found = context.new_page()
    found.goto(address)
    found.wait_for_selector(".composer")
    return found
