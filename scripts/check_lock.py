"""Say whether pip finds every package of locks/, with a hash that fits, for each Python and processor.

    scripts/lock --check [3.12 ...]

pip chooses files for another machine, but reads a lock's markers for its own; so each machine gets a
list here that holds what its markers ask for. The engine is left out by name: it is compiled where it
is installed, so that its sdist is one file for all of them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PROCESSORS = ("x86_64", "aarch64")
PARTS = ("build", "run", "test")
_LOCKS = Path(__file__).resolve().parents[1] / "locks"
# pip takes these literally, not as "or older". glibc 2.31 is Debian 11's and Ubuntu 20.04's.
_GLIBCS = ("2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")


def main() -> int:
    pythons = sys.argv[1:] or PYTHONS
    print("python  processor  packages  MiB   pip download")
    failed = False
    for python in pythons:
        for processor in PROCESSORS:
            asked = sorted(set(entries_for(python, processor)))
            with tempfile.TemporaryDirectory() as folder:
                error = _download(asked, python, processor, Path(folder))
                total_bytes = sum(file.stat().st_size for file in Path(folder).iterdir())
            failed |= error is not None
            row = f"{python:6}  {processor:9}  {len(asked):8}  {total_bytes >> 20:4}  {error or 'ok'}"
            print(row, flush=True)
    return 1 if failed else 0


def entries(part: str) -> Iterator[tuple[Requirement, list[str]]]:
    """The packages of one file: what is required, and the hashes of its files."""
    text = (_LOCKS / f"{part}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            required, *hashes = re.split(r"\s+--hash=", line)
            yield Requirement(required), hashes


def entries_for(python: str, processor: str) -> Iterator[str]:
    """What one machine is asked to install, without markers."""
    for part in PARTS:
        for required, hashes in entries(part):
            if holds(required, python, processor):
                yield " ".join(
                    [f"{required.name}{required.specifier}", *(f"--hash={value}" for value in hashes)]
                )


def holds(required: Requirement, python: str, processor: str) -> bool:
    machine = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": processor,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    return required.marker is None or required.marker.evaluate(machine)


def _download(asked: list[str], python: str, processor: str, folder: Path) -> str | None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--quiet",
        "--no-input",
    ]
    command += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--python-version", python]
    command += [f"--platform=manylinux_{glibc}_{processor}" for glibc in _GLIBCS]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(asked))
        file.flush()
        command += ["-r", file.name, "--dest", str(folder)]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 0:
        return None
    errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or [f"pip ended with {run.returncode}"])[-1]


if __name__ == "__main__":
    sys.exit(main())
