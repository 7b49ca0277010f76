"""A page as a picture, by a Chromium that is installed here; memfit brings none.

The browser is given a folder of its own for all that it keeps, and a time limit. It fetches nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from memfit.errors import OutputError, UsageError
from memfit.hardware.folders import scratch_folder

__all__ = ["find_browser", "take_picture"]

_BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
)
_OPTIONS = (
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--force-device-scale-factor=2",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_SECONDS = 60.0
_WIDTH, _HEIGHT = 800, 600  # CSS pixels; the height is found out
_POLICY = "default-src 'none'"
_MEASURED = "Math.ceil(document.querySelector('footer').getBoundingClientRect().bottom)"
_SAID_BYTES = 1000  # of what a failing browser printed last


def find_browser() -> str:
    """The path of one. Raises UsageError where there is none."""
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        raise UsageError(
            "--png needs Chromium or Chrome on the PATH: sudo apt-get install chromium; --html works without",
            field="--png",
        )
    return found


def take_picture(page: str, browser: str, near: Path) -> bytes:
    """The PNG of a page, as high as the page is. A browser from a snap reads and writes the user's own
    folders only, so the scratch folder lies in `near`, where the picture goes.

    Raises:
        OutputError: the browser failed, or took too long.
    """
    try:
        with scratch_folder(near, "memfit-picture-") as folder:
            height = _height(page, browser, folder)
            file, picture = folder / "plan.html", folder / "plan.png"
            file.write_text(page, encoding="utf-8")
            said = _run(browser, folder, file, f"--window-size={_WIDTH},{height}", f"--screenshot={picture}")
            if not picture.is_file():
                raise _failed(browser, said)
            return picture.read_bytes()
    except OSError as error:
        raise OutputError(f"--png: {near}: {error.strerror}") from None


def _height(page: str, browser: str, folder: Path) -> int:
    """As a script in a copy of the page finds it: nothing else in a page may run one."""
    nonce = secrets.token_hex()
    script = f'<script nonce="{nonce}">document.write({_MEASURED})</script>'
    file = folder / "measured.html"
    copy = page.replace(_POLICY, f"{_POLICY}; script-src 'nonce-{nonce}'", 1)
    file.write_text(copy.replace("</body>", f'<i id="height">{script}</i></body>'), encoding="utf-8")
    said = _run(browser, folder, file, f"--window-size={_WIDTH},{_HEIGHT}", "--dump-dom")
    found = re.search(r'<i id="height">.*</script>(\d+)</i>', said)
    if found is None:
        raise _failed(browser, said)
    return int(found[1])


def _run(browser: str, folder: Path, page: Path, *options: str) -> str:
    """What it printed on both streams: to a file, since its helpers may hold a pipe open after its end."""
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root it starts only without
    command: Sequence[str] = (browser, *_OPTIONS, *root, f"--user-data-dir={folder / 'profile'}", *options)
    log = folder / "log"
    with log.open("wb") as out:
        try:
            process = subprocess.Popen(
                [*command, page.as_uri()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # a group of its own, ended whole
            )
        except OSError as error:
            raise OutputError(f"--png: {browser} cannot be started: {error.strerror}") from None
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            raise OutputError(
                f"--png: {browser} made no picture within {_SECONDS:.0f} s; --html works without it"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        raise _failed(browser, said)
    return said


def _failed(browser: str, said: str) -> OutputError:
    return OutputError(
        f"--png: {browser} made no picture: {said[-_SAID_BYTES:].strip() or 'it says nothing'}; "
        "--html works without it"
    )
