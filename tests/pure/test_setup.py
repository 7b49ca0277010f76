"""scripts/setup says in one sentence what is wrong and what mends it, with an index of our own making."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]

_PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "memfit"
version = "0.1.0"
"""

# Makes an editable wheel of nothing that asks for a package which no lock here holds.
_BACKEND = """
import zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "memfit-0.1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\\nName: memfit\\nVersion: 0.1.0\\nRequires-Dist: not-in-the-lock>=2\\n"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("memfit-0.1.0.dist-info/METADATA", about)
        wheel.writestr("memfit-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("memfit-0.1.0.dist-info/RECORD", "")
    return name
"""

# An interpreter that is this one but for a line of Python that comes first.
_PRETENDER = """#!/bin/sh
case "$1" in
    --version) echo Python 3.99.0 ;;
    -c) exec {python} -c '{first}; import sys; exec(sys.argv[1])' "$2" ;;
    *) exec {python} "$@" ;;
esac
"""


class Checkout:
    """A checkout with scripts/setup, locks of its own, and a folder that serves as the package index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index"
        for name in ("scripts", "locks", "index"):
            (folder / name).mkdir()
        for name in ("setup", "check_engine.py", "engine.cmake", "amx.h"):
            shutil.copy(_ROOT / "scripts" / name, folder / "scripts" / name)
        (folder / "pyproject.toml").write_text(_PYPROJECT, encoding="utf-8")
        (folder / "backend.py").write_text(_BACKEND, encoding="utf-8")
        self.hash = self._serve("sample", "1.0")
        (folder / "locks" / "engine.txt").write_text("llama-cpp-python==0.3.36\n", encoding="utf-8")
        self.lock(f"sample==1.0 --hash=sha256:{self.hash}")

    def _serve(self, name: str, version: str) -> str:
        file = self.index / f"{name}-{version}-py3-none-any.whl"
        about = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def lock(self, *lines: str) -> None:
        for part in ("build", "run"):
            (self.folder / "locks" / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def setup_fails(self, **environment: str) -> str:
        """The one line that says why."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}
        done = subprocess.run(
            [self.folder / "scripts" / "setup", "run"],
            env=inherited | settings | {"PYTHON": sys.executable} | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1 and done.stdout == "", done
        last = done.stderr.splitlines()[-1]
        assert last.startswith("setup: "), done.stderr
        return last

    def pretender(self, first: str) -> str:
        file = self.folder / "python"
        file.write_text(_PRETENDER.format(python=sys.executable, first=first), encoding="utf-8")
        file.chmod(0o755)
        return str(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One for all: a set-up that failed leaves its .venv to the next."""
    return Checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def checkout(made: Checkout) -> Checkout:
    made.lock(f"sample==1.0 --hash=sha256:{made.hash}")
    return made


def test_a_file_that_is_not_the_locked_one(checkout: Checkout) -> None:
    checkout.lock(f"sample==1.0 --hash=sha256:{'0' * 64}")
    said = checkout.setup_fails()
    assert "gave another file than locks names" in said and "PIP_INDEX_URL" in said


def test_a_package_without_a_hash(checkout: Checkout) -> None:
    checkout.lock("sample==1.0")
    assert "locks has no hash for" in checkout.setup_fails()


def test_a_version_that_the_index_lacks(checkout: Checkout) -> None:
    checkout.lock(f"sample==2.0 --hash=sha256:{checkout.hash}")
    said = checkout.setup_fails()
    assert "the package index has no sample==2.0" in said and "scripts/lock" in said


def test_no_network(checkout: Checkout) -> None:
    nobody = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_NO_INDEX": "0"}
    checkout.lock(f"absent==1.0 --hash=sha256:{checkout.hash}")
    said = checkout.setup_fails(**nobody)
    assert "does not reach its package index" in said and "needs a network" in said


def test_pyproject_asks_for_more_than_the_lock_has(checkout: Checkout) -> None:
    said = checkout.setup_fails()
    assert "locks does not hold what pyproject.toml asks for" in said
    assert "not-in-the-lock" in said and said.endswith("make it again with: scripts/lock")


def test_a_lock_that_is_not_there(checkout: Checkout) -> None:
    (checkout.folder / "locks" / "engine.txt").rename(checkout.folder / "engine.txt")
    try:
        assert "locks/engine.txt is missing" in checkout.setup_fails()
    finally:
        (checkout.folder / "engine.txt").rename(checkout.folder / "locks" / "engine.txt")


class TestWithoutVenv:
    """What is found out before .venv is made."""

    def test_a_python_that_the_lock_does_not_know(self, tmp_path: Path) -> None:
        checkout = Checkout(tmp_path)
        python = checkout.pretender("import sys; sys.version_info = (3, 99, 0)")
        said = checkout.setup_fails(PYTHON=python)
        assert (
            "needs Python 3.10 to 3.14" in said and "found Python 3.99.0" in said and "PYTHON=python3" in said
        )

    def test_a_python_without_ensurepip(self, tmp_path: Path) -> None:
        checkout = Checkout(tmp_path)
        python = checkout.pretender('import sys; sys.modules["ensurepip"] = None')
        said = checkout.setup_fails(PYTHON=python)
        assert "has no venv module" in said and "apt-get install python3-venv" in said
