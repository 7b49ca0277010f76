"""llama-server's own tests, those of them that concern what memfit serves (llama_server_tests.txt).

The list holds what passes on llama-server with the same stand-ins for the hub's models. Lines marked "several
models" wait until memfit serves more than one: against memfit they are left out.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from environments import CACHE, environment
from limits import Limits
from results import Result, of_junit
from servers import free_port
from stand_ins import encoder, reranker
from subjects import MEMFIT, ROOT, models, peers

_HERE = Path(__file__).resolve().parent
_LATER = "several models"
_ROUTED = "ggml-org/tinygemma3-GGUF:Q8_0"  # the model that tests of the router ask for


def run(server: str, limits: Limits) -> list[Result]:
    lines = (_HERE / "llama_server_tests.txt").read_text().splitlines()
    left_out = sum(_LATER in line for line in lines) if server == "memfit" else 0
    ids = [line.split("\t")[0] for line in lines if not (left_out and _LATER in line)]
    note = f"{left_out} more wait for several models" if left_out else "all of the list"
    sources = next(peers().parent.parent.glob("llama_cpp_python-*/vendor/llama.cpp"))
    requirements = (sources / "tools/server/tests/requirements.txt").read_text().split()
    python = environment("llama-server-tests", *requirements)
    with tempfile.TemporaryDirectory(prefix="memfit-suite-") as name:
        folder = Path(name)
        # Their templates lie at ../../../models of the tests; the sources are only read.
        tests = folder / "tools/server/tests"
        shutil.copytree(sources / "tools/server/tests", tests)
        (folder / "models").symlink_to(sources / "models")
        (folder / "ids.txt").write_text("\n".join(ids))
        report = folder / "report.xml"
        command: list[str | Path] = [
            python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
        ]
        with (CACHE / f"llama-server-tests-{server}.log").open("wb") as log:
            subprocess.run(
                [*command, f"@{folder / 'ids.txt'}"],
                cwd=tests,
                env=_variables(server, folder),
                stdout=log,
                stderr=log,
                check=False,
            )
        return [of_junit("llama-server", report, len(ids), note, f"the whole log is {log.name}")]


def _variables(server: str, folder: Path) -> dict[str, str]:
    """What the adapter reads, and what the tests do."""
    files = {
        "causal": models()["demo"],
        "encoder": str(encoder(CACHE / "models")),
        "reranker": str(reranker(CACHE / "models")),
        "preset": str(folder / "preset.ini"),
    }
    Path(files["preset"]).write_text(f"version = 1\n\n[{_ROUTED}]\nmodel = {files['causal']}\nc = 1024\n")
    started = [*MEMFIT, "serve"] if server == "memfit" else [str(peers() / "llama-server")]
    return os.environ | {
        "LLAMA_SERVER_BIN_PATH": str(_program(folder)),
        "LLAMA_CACHE": str(folder / "cache"),
        "MEMFIT_SUITES_SERVER": server,
        "MEMFIT_SUITES_COMMAND": json.dumps(started),
        "MEMFIT_SUITES_MODELS": json.dumps(files),
        "PORT": str(free_port()),
        "PYTHONPATH": str(ROOT / "src"),
    }


def _program(folder: Path) -> Path:
    """The adapter as a single file to execute."""
    program = folder / "llama-server"
    words = shlex.join([sys.executable, str(_HERE / "llama_server_adapter.py")])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    return program
