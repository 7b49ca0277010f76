"""Environments and sources that a suite runs with: made once under the user's cache, from PyPI.

Nothing is installed beside memfit. A suite's environment is made anew when its requirements change.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from filelock import FileLock

CACHE = Path.home() / ".cache/memfit/suites"


def environment(name: str, *requirements: str) -> Path:
    """The Python of a virtual environment that has these."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{name}.lock"):
        return _made(CACHE / name, requirements)


def _made(folder: Path, requirements: tuple[str, ...]) -> Path:
    python, stamp = folder / "bin/python", folder / "requirements.txt"
    wanted = "\n".join(requirements)
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(
        f"{folder.name}: installing {len(requirements)} packages into {folder}", file=sys.stderr, flush=True
    )
    shutil.rmtree(folder, ignore_errors=True)
    if uv := shutil.which("uv"):
        _run(uv, "venv", "--python", sys.executable, folder)
        _run(uv, "pip", "install", "--python", python, *requirements)
    else:
        _run(sys.executable, "-m", "venv", folder)
        _run(python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *requirements)
    stamp.write_text(wanted)  # last, so that an interrupted installation is begun again
    return python


def sources(requirement: str) -> Path:
    """The unpacked source distribution of `name==version`, which has the tests that a wheel leaves out."""
    folder = CACHE / "sources" / requirement.replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        _unpack(folder, requirement)
    return folder


def _unpack(folder: Path, requirement: str) -> None:
    if not folder.is_dir():
        archives = folder.parent / "archives"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
        _run(*pip, "--no-deps", "--no-binary", ":all:", "--dest", archives, requirement)
        unpacking = folder.with_suffix(".unpacking")
        shutil.rmtree(unpacking, ignore_errors=True)
        (archive,) = archives.glob(f"{folder.name.replace('-', '?')}.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(unpacking, filter="data")
        (inner,) = unpacking.iterdir()
        inner.rename(folder)
        unpacking.rmdir()


def _run(*command: str | Path) -> None:
    """stdout is the table's; what installers say goes to stderr."""
    subprocess.run(command, check=True, stdout=sys.stderr)
