"""Which room may import or name which (the list of rooms in the README), and what `--help` may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import memfit

_PACKAGE = Path(memfit.__file__).parent
# From the roof to the ground floor: a room imports itself and lower ones, never its neighbours.
_FLOORS = (
    ("cli",),
    ("server", "batch", "evaluate", "quantize", "finetune", "monitor"),
    ("openai",),
    ("advise",),  # plans many where `api` plans one
    ("api",),  # the Python front: what `memfit.plan` and `memfit.load` are
    ("saved_plan",),
    ("known_losses",),
    ("engines",),
    ("planner",),
    ("memory",),
    ("hub",),
    ("headers",),
    ("hardware",),
    ("processes",),
    ("strict_json",),
    ("errors",),
    ("units",),
    ("closing",),
)
_FLOOR = {room: floor for floor, rooms in enumerate(_FLOORS) for room in rooms}
_NEIGHBOURS = {("evaluate", "batch"), ("quantize", "evaluate"), ("finetune", "evaluate")}
_EXEMPT = {"__init__.py", "__main__.py"}  # the front door sees every room
_MODULE_PATH = re.compile(rf"memfit\.({'|'.join(_FLOOR)})(\.[\w.]*)?$", re.ASCII)
_HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "rich",
    "llama_cpp",
    "pynvml",
    "huggingface_hub",
    "httpx2",
    "textual",
)


def _modules() -> list[Path]:
    return [
        path for path in sorted(_PACKAGE.rglob("*.py")) if path.parent != _PACKAGE or path.name not in _EXEMPT
    ]


def _imported(source: str, module: str) -> Iterator[str]:
    """Dotted names of memfit's modules that `module` imports, also inside functions and TYPE_CHECKING, or has
    as a string: a process may be started by it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            # `from memfit import planner` names its room only after the import.
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "memfit" else [base]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if _MODULE_PATH.match(node.value) else []
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "memfit")


def _violations(source: str, module: str) -> list[str]:
    room = module.split(".")[1]
    found = []
    for name in _imported(source, module):
        if name == "memfit.__version__":
            continue
        target = name.split(".")[1] if "." in name else "memfit"
        if target == room or (room, target) in _NEIGHBOURS:
            continue
        if target not in _FLOOR or _FLOOR[target] <= _FLOOR[room]:
            found.append(f"{module} imports {name}")
    return found


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("path", _modules(), ids=_module_name)
def test_imports_go_down_only(path: Path) -> None:
    module = _module_name(path)
    assert module.split(".")[1] in _FLOOR, f"{module} lies in a room that the design does not list"
    assert _violations(path.read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("memfit.planner.search", "from memfit.engines.requests import Engine"),
        ("memfit.planner.search", "import memfit.cli.main"),
        ("memfit.planner.search", "def later():\n    from memfit import engines"),
        ("memfit.headers.gguf", "from ..memory import oracle"),
        ("memfit.batch.run", "from memfit.evaluate import tasks"),
        ("memfit.units", "from memfit.errors import UsageError"),
        ("memfit.hardware.probe", "import memfit"),
        ("memfit.hardware.probe", "from memfit import plan"),
        ("memfit.engines.llamacpp.calibrate", "_MODULE = 'memfit.cli.run'"),
        ("memfit.hub.subprocess", "ask_helper('memfit.engines', 'x')"),
        ("memfit.hardware.probe", "importlib.import_module(f'memfit.cli.{name}')"),
    ],
)
def test_an_import_upwards_is_seen(module: str, source: str) -> None:
    assert len(_violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("memfit.cli.main", "from memfit import __version__"),
        ("memfit.evaluate.tasks", "from memfit.batch.run import batch"),
        ("memfit.planner.search", "from .speed import model\nfrom ..units import GIB\nimport math"),
        ("memfit.engines.llamacpp.process", "start('memfit.engines.llamacpp.worker', 'memfit.hub')"),
        ("memfit.engines.llamacpp.calibrate", "ask_helper('memfit', 'calibration-run')"),
    ],
)
def test_an_import_downwards_is_allowed(module: str, source: str) -> None:
    assert _violations(source, module) == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, memfit, memfit.cli.main\n"
        "try:\n    memfit.cli.main.main(['--help'])\n"
        f"finally:\n    print([name for name in {_HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: memfit")
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their names alone, so that the second one ends the whole run."""
    names = [path.name for path in Path(__file__).resolve().parents[1].rglob("test_*.py")]
    assert len(set(names)) == len(names)
