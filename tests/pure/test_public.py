"""The package's front door: exactly these names, each from its room, none imported before it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import memfit

_PUBLIC = [
    "Budget",
    "Completion",
    "Conditions",
    "DoesNotFitError",
    "MemfitError",
    "Plan",
    "Report",
    "Sampling",
    "Session",
    "Workload",
    "load",
    "plan",
]


def test_all_is_exact() -> None:
    assert memfit.__all__ == _PUBLIC


@pytest.mark.parametrize("name", _PUBLIC)
def test_each_name_is_there(name: str) -> None:
    value = getattr(memfit, name)
    assert value.__name__ == name
    assert value.__module__.startswith("memfit.")
    assert value.__doc__


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = memfit.nothing  # type: ignore[attr-defined]


def test_a_star_import_brings_exactly_these() -> None:
    scope: dict[str, object] = {}
    exec("from memfit import *", scope)
    assert sorted(set(scope) - {"__builtins__"}) == _PUBLIC


def _modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, json\nbefore = set(sys.modules)\n{code}\n"
            "print(json.dumps(sorted(set(sys.modules) - before)))",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_importing_the_package_imports_nothing_else() -> None:
    loaded = {name for name in _modules_after("import memfit") if name.startswith("memfit")}
    assert loaded == {"memfit"}


def test_a_budget_does_not_need_the_engine() -> None:
    loaded = _modules_after("import memfit\nmemfit.Budget(ram='1GiB'), memfit.Workload(), memfit.Sampling()")
    assert not {name.split(".")[0] for name in loaded} & {"llama_cpp", "numpy", "rich", "click", "jinja2"}


def test_the_python_interface_does_not_load_the_c_library() -> None:
    loaded = _modules_after("import memfit\nmemfit.plan, memfit.load")
    assert not {name.split(".")[0] for name in loaded} & {"llama_cpp", "numpy", "torch", "jinja2"}


def test_dir_lists_the_public_names() -> None:
    shown = _modules_after("import memfit\nassert set(memfit.__all__) <= set(dir(memfit)), dir(memfit)")
    assert shown
