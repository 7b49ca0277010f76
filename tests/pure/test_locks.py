"""locks/ holds what pyproject.toml asks for, for every Python and processor, and nothing else."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from check_lock import PARTS, PROCESSORS, PYTHONS, entries, holds

_ROOT = Path(__file__).resolve().parents[2]
_MACHINES = list(itertools.product(PYTHONS, PROCESSORS))
# Which lists of pyproject.toml each part of the lock is made from.
_ASKED = {
    "build": ("build-system.requires", "dependency-groups.build"),
    "run": (
        "project.dependencies",
        "project.optional-dependencies.llamacpp",
        "project.optional-dependencies.monitor",
        "project.optional-dependencies.serve",
        "dependency-groups.demo",
    ),
    "engine": ("project.optional-dependencies.llamacpp",),
    "test": (
        "project.dependencies",
        "project.optional-dependencies.llamacpp",
        "project.optional-dependencies.monitor",
        "project.optional-dependencies.serve",
        "project.optional-dependencies.transformers",
        "project.optional-dependencies.test",
        "dependency-groups.build",
        "dependency-groups.demo",
        "dependency-groups.models",
    ),
}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _asked(part: str) -> list[Requirement]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")
    pyproject = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = []
    for place in _ASKED[part]:
        value = pyproject
        for key in place.split("."):
            value = value[key]
        found += [Requirement(line) for line in value]
    # torch has no hash, and the engine a part of its own.
    engine = part == "engine"
    return [one for one in found if one.name != "torch" and (one.name == "llama-cpp-python") == engine]


def _versions(part: str, python: str, processor: str) -> dict[str, str]:
    """What is installed on one machine; a package that is named twice is a mistake."""
    found: dict[str, str] = {}
    for required, _ in entries(part):
        if holds(required, python, processor):
            (pin,) = required.specifier
            assert pin.operator == "==" and _canonical(required.name) not in found, required
            found[_canonical(required.name)] = pin.version
    return found


@pytest.mark.parametrize("part", _ASKED)
def test_the_lock_is_made_from_pyproject(part: str) -> None:
    asked = _asked(part)
    assert asked
    for python, processor in _MACHINES:
        versions = _versions(part, python, processor)
        for required in asked:
            if not holds(required, python, processor):
                continue
            version = versions.get(_canonical(required.name))
            fits = version is not None and required.specifier.contains(Version(version), prereleases=True)
            assert fits, f"locks/{part}.txt has {version} for {required}; make it again with: scripts/lock"


@pytest.mark.parametrize("part", ["build", "run"])
def test_parts_agree(part: str) -> None:
    for python, processor in _MACHINES:
        everything = _versions("test", python, processor)
        assert _versions(part, python, processor).items() <= everything.items()


def test_nothing_for_tests_comes_with_make_run() -> None:
    for python, processor in _MACHINES:
        names = _versions("run", python, processor) | _versions("build", python, processor)
        assert not {"pytest", "hypothesis", "mypy", "ruff", "transformers", "gguf"} & names.keys()


@pytest.mark.parametrize("part", [*PARTS, "engine"])
def test_every_package_has_hashes_and_none_an_address(part: str) -> None:
    for required, hashes in entries(part):
        assert hashes and required.url is None, required
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes), required
    text = (_ROOT / "locks" / f"{part}.txt").read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text


@pytest.mark.parametrize("part", [*PARTS, "engine"])
def test_the_lock_holds_neither_torch_nor_cuda(part: str) -> None:
    """Its build is whoever's who installs it; the one with CUDA is gigabytes."""
    names = {_canonical(required.name) for required, _ in entries(part)}
    cuda = {name for name in names if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert "torch" not in names and cuda <= {"nvidia-ml-py"}
