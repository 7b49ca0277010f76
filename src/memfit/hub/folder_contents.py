"""What to type instead of a folder that holds no checkpoint, by the names of what lies in it."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

from memfit.errors import UsageError, readable
from memfit.hub.remote_files import RemoteFile, shard_names, variants
from memfit.hub.split_pieces import how_to_join
from memfit.strict_json import parse_json, read_bytes
from memfit.units import format_bytes

__all__ = ["PICKLES", "adapter_of", "what_a_folder_holds"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MOST_NAMES, _MOST_FOLDERS, _MOST_SHOWN = 10_000, 64, 8


def what_a_folder_holds(folder: Path) -> str:
    """The end of the sentence "FOLDER is a directory without a config.json: …"; reads names, no weights.

    Raises:
        OSError: it cannot be listed.
    """
    sizes = _sizes(folder)
    if not sizes:
        return "it is empty"
    for root in (folder, *_below(folder)):
        here = sizes if root == folder else _sizes(root)
        found = variants([RemoteFile(name=name, size_bytes=size) for name, size in here.items() if size >= 0])
        if found:
            return _choices(root, [(one.files[0].name, one.size_bytes) for one in reversed(found)])
    names = sorted(sizes)
    if joined := how_to_join(names, str(folder)):
        return f"it holds {joined}"
    if "adapter_config.json" in sizes:
        return adapter_of(_config(folder / "adapter_config.json"))
    if missing := _missing_shards(names):
        return f"it holds only a part of a model; {missing} is missing"
    if any(name.lower().endswith(".gguf") for name in names):
        return "its .gguf files are companions (projector, importance matrix), which go with a model"
    if any(name.endswith(".safetensors") for name in names):
        return "its safetensors need the config.json of the same repository beside them"
    if any(name.lower().endswith(PICKLES) for name in names):
        return (
            "it holds its weights as Python pickles only, which can run any program when they are read; look "
            "for the model as .gguf or .safetensors"
        )
    if folder.name.startswith("models--") and "snapshots" in sizes:
        return f"it belongs to the cache; write hf:{folder.name.removeprefix('models--').replace('--', '/')}"
    return "it holds no model; a model is a .gguf file, or a directory with config.json and safetensors"


def adapter_of(config: Any) -> str:
    """What an adapter's folder or repository is, by its adapter_config.json."""
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        return "it holds an adapter, which goes with its base model and is none itself"
    shown = readable(base, most=200, kept="")
    model = f"hf:{shown}" if shown.count("/") == 1 and not Path(shown).exists() else shown
    return f"it holds an adapter of {shown}, which is no model itself; the model is {model}"


def _config(path: Path) -> Any:
    try:
        return parse_json(read_bytes(path, path.name), path.name)
    except UsageError:
        return None


def _sizes(folder: Path) -> dict[str, int]:
    """Name → bytes of what lies there; -1 of what is no file. Nothing is opened."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in islice(entries, _MOST_NAMES):
            try:
                found[entry.name] = entry.stat().st_size if entry.is_file() else -1
            except OSError:  # a link to nothing
                found[entry.name] = -1
    return found


def _below(folder: Path) -> list[Path]:
    """Folders inside that can be listed."""
    with os.scandir(folder) as entries:
        named = [Path(entry.path) for entry in islice(entries, _MOST_NAMES) if entry.is_dir()]
    return sorted(path for path in named if os.access(path, os.R_OK | os.X_OK))[:_MOST_FOLDERS]


def _choices(folder: Path, models: list[tuple[str, int]]) -> str:
    shown = [
        f"{readable(str(folder / name), kept='')} ({format_bytes(size)})"
        for name, size in models[:_MOST_SHOWN]
    ]
    more = f" and {len(models) - _MOST_SHOWN} more" if len(models) > _MOST_SHOWN else ""
    if len(models) == 1:
        return f"name the model in it: {shown[0]}"
    return f"it holds {len(models)} models; name one: {', '.join(shown)}{more}"


def _missing_shards(names: list[str]) -> str | None:
    for name in names:
        shards = shard_names(name)
        missing = [shard for shard in shards if shard not in names]
        if len(shards) > 1 and missing:
            return " and ".join(missing[:3]) + (" and more" if len(missing) > 3 else "")
    return None
