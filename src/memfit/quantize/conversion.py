"""Checkpoints of the Hugging Face kind as GGUF files, by llama.cpp's own converter in a process of its own.

The converter comes with the engine's sources; set-up unpacks it (scripts/unpack_converter.py) and the wheel
carries it, under llama.cpp's licence. It passes over fields of a config that it does not know: those are
refused here, by name (honoured.py). It runs a tokenizer's own program where one comes with a checkpoint, so
such a folder is refused unless its user trusts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memfit.errors import DoesNotFitError, EngineError, EngineMissingError, UsageError
from memfit.headers.hf_shapes import HfModel
from memfit.memory.meter import Meter
from memfit.quantize.honoured import require_honoured
from memfit.quantize.whole_file import whole_file

__all__ = ["PLAIN", "Converted", "convert", "convert_adapter", "is_adapter"]

PLAIN = ("F32", "F16", "BF16")  # what it writes for us; smaller types are the quantizer's
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_MODEL, _ADAPTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
_ADAPTER_CONFIG = "adapter_config.json"
_LOOK_SECONDS = 0.2
_ERROR = re.compile(r"^\w*(?:Error|Exception)\b.*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Converted:
    file_bytes: int
    peak_bytes: int  # of both processes


def convert(
    model: HfModel,
    folder: Path,
    output: Path,
    file_type: str,
    *,
    ram_bytes: int,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Converted:
    """Write a checkpoint as one GGUF file of a PLAIN type, tokenizer and chat template included. At most
    `ram_bytes` are held; `on_progress` hears bytes that are written, and about how many there will be.

    Raises:
        UsageError: the config has what the converter would pass over, or the folder a program of its own.
        DoesNotFitError: it was about to take more RAM.
        EngineError: the converter failed.
        EngineMissingError: it is not here, or a package that it needs.
        OutputError: the disk is full, or cannot be written to.
    """
    require_honoured(folder)
    _require_trust(folder, trust_remote_code)
    size = sum(one.elements for one in model.parameters) * _BYTES[file_type]
    sources = _weights(folder)
    arguments = [str(folder), "--outtype", file_type.lower()]
    with whole_file(output, sources, size, overwrite=overwrite) as partial:
        peak = _run(
            _MODEL, arguments, partial, sources, ram_bytes, lambda done: on_progress(min(done, size), size)
        )
        return Converted(file_bytes=partial.stat().st_size, peak_bytes=peak)


def is_adapter(path: Path) -> bool:
    """Whether it is a folder with a LoRA adapter in the format of peft."""
    return (path / _ADAPTER_CONFIG).is_file()


def convert_adapter(
    adapter: Path, base: Path | None, output: Path, *, ram_bytes: int, overwrite: bool = False
) -> Converted:
    """Write a LoRA adapter as GGUF in F16; `base` is the checkpoint that it was made for, or None where the
    adapter's config names its folder. Errors as in `convert`."""
    base = base or _base_of(adapter)
    if not (base / "config.json").is_file():
        raise UsageError(f"{base} is no checkpoint, which the adapter was made for; --base DIR names it")
    _require_trust(base, False)
    paths = _weights(adapter)
    size = sum(path.stat().st_size for path in paths)
    arguments = [str(adapter), "--base", str(base), "--outtype", "f16"]
    with whole_file(output, paths, size, overwrite=overwrite) as partial:
        peak = _run(_ADAPTER, arguments, partial, paths, ram_bytes, lambda _: None)
        return Converted(file_bytes=partial.stat().st_size, peak_bytes=peak)


def _base_of(adapter: Path) -> Path:
    try:
        named = json.loads((adapter / _ADAPTER_CONFIG).read_bytes())["base_model_name_or_path"]
        return Path(named)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{adapter} does not say which model it was made for; --base DIR does") from None


def _weights(folder: Path) -> tuple[Path, ...]:
    return tuple(path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin"))


def _require_trust(folder: Path, trusted: bool) -> None:
    if trusted:
        return
    for path in sorted(folder.glob("*.json")):
        try:
            found = json.loads(path.read_bytes()) if path.stat().st_size < 1 << 20 else None
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and "auto_map" in found:
            raise UsageError(
                f"{path} asks for a program that comes with the checkpoint, which the converter would run; "
                "--trust-remote-code lets it do anything you may"
            )


def _script(name: str) -> Path:
    path = Path(sys.prefix) / "share" / "memfit" / "converter" / name
    if not path.is_file():
        raise EngineMissingError(
            f"llama.cpp's converter is not at {path.parent}: memfit's wheel brings it, and in a checkout "
            "scripts/setup test does"
        )
    return path


def _run(
    name: str,
    arguments: list[str],
    output: Path,
    sources: tuple[Path, ...],
    ram_bytes: int,
    on_bytes: Callable[[int], None],
) -> int:
    """The most bytes that were held. Its own words go to a file: a pipe that nobody reads would stop it."""
    command = [sys.executable, str(_script(name)), *arguments, "--outfile", str(output)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_COLOR": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C is for us, who end it
        )
        meter = Meter(
            process.pid,
            count_parent=True,
            model_files=sources,
            limit_bytes=ram_bytes,
            on_overrun=process.kill,
        )
        try:
            meter.start()
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    on_bytes(output.stat().st_size)
                time.sleep(_LOOK_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            meter.stop()
        if over := meter.overrun:
            raise DoesNotFitError(tier="RAM", needs_bytes=over.held_bytes, budget_bytes=ram_bytes)
        if process.returncode:
            log.seek(0)
            raise _explained(log.read().decode(errors="replace"), process.returncode)
        return meter.peak_bytes


def _explained(told: str, code: int) -> EngineError:
    errors = _ERROR.findall(told)
    last = errors[-1] if errors else " / ".join(told.strip().splitlines()[-2:]) or f"exit code {code}"
    if found := re.match(r"ModuleNotFoundError: No module named '([\w.]+)'", last):
        return EngineMissingError(
            f"converting needs {found[1]}, which is not installed: pip install 'memfit[convert]'"
        )
    return EngineError(f"llama.cpp's converter failed: {last}")
