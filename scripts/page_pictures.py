"""Takes the pictures of the page in docs/page/ again: a server with the demo model, looked at by a browser.

Needs chromium and playwright, which the extra `test` has.

    python scripts/page_pictures.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

_TARGET = Path(__file__).resolve().parent.parent / "docs" / "page"
_SIZE = {"width": 960, "height": 640}
_QUESTION = {
    "en": "Name three rivers of Africa, and write a Python function that adds two numbers.",
    "ar": "Write a short letter to a friend about the sea.",
}
# room, language, theme: each room once, each language and theme often enough to be seen
_PICTURES = (
    ("chat", "en", "light"),
    ("memory", "en", "light"),
    ("plan", "en", "dark"),
    ("models", "en", "dark"),
    ("chat", "ar", "dark"),
    ("activity", "ar", "light"),
)


def main() -> None:
    _TARGET.mkdir(exist_ok=True)
    with _server() as address, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--force-device-scale-factor=1"]
        )
        for room, language, theme in _PICTURES:
            context = browser.new_context(
                locale=language, color_scheme=theme, viewport=_SIZE, reduced_motion="reduce"
            )
            page = context.new_page()
            page.goto(address)
            page.wait_for_selector(".composer")
            if room in ("chat", "activity"):
                _chat(page, _QUESTION[language])
            page.click(f"nav a[href='#{room}']")
            page.wait_for_timeout(3000)  # figures that are asked for come in
            page.screenshot(path=_TARGET / f"{room}-{language}.png")
            context.close()
        browser.close()


def _chat(page: Any, question: str) -> None:
    page.click("summary")
    page.fill("input[max='131072']", "160")  # tokens at most
    page.click("summary")
    page.fill(".composer textarea", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant .tools", timeout=120_000)


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "memfit", "serve", "demo", "--port", "0", "--ram", "2GiB"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            yield next(line.split()[-1] for line in process.stderr if "ready: " in line)
        finally:
            process.terminate()
            process.communicate(timeout=60)


if __name__ == "__main__":
    main()
