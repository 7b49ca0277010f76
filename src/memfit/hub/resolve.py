"""From MODEL, whatever it names, to its ModelSpec: the files here, or stand-ins for those that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from memfit.errors import ModelError
from memfit.headers.gguf_model import read_model
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint, model_from_config
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_checkpoint_writes
from memfit.headers.safetensors import Checkpoint, read_checkpoint
from memfit.hub.source import is_checkpoint_here, is_remote_name, names_repository, resolve
from memfit.hub.subprocess import ask

__all__ = ["find_checkpoint", "find_file", "find_model", "find_weights", "is_checkpoint"]


def find_model(model: str, say: Callable[[str], None] | None = None) -> ModelSpec:
    """The facts about the model that MODEL names; of a remote one only the header is fetched.

    Raises:
        ModelNotFoundError: nothing is there.
        ModelError: it cannot be read, or is no GGUF model.
        UsageError: a malformed name.
    """
    path = find_file(model, say)
    if path.name == "config.json":
        raise ModelError(
            f"{model} is a checkpoint for transformers, which memfit plan, run and bench take; this needs a "
            "GGUF file"
        )
    return read_model(path, source=model)


def find_file(model: str, say: Callable[[str], None] | None = None) -> Path:
    """Its first file. Errors as `find_model`."""
    return Path(ask("paths", model, say)[0]) if is_remote_name(model) else resolve(model)


def find_checkpoint(model: str, say: Callable[[str], None] | None = None) -> HfModel | None:
    """A Hugging Face checkpoint: from its config.json, and its safetensors' headers where there are any.

    None where MODEL names something else. Errors as `find_model`; ModelError where it writes no text.
    """
    path = find_file(model, say)
    if path.name != "config.json":
        return None
    require_checkpoint_writes(model, path)
    config, weights = read_config(path), find_weights(path)
    return model_from_checkpoint(config, weights) if weights else model_from_config(config)


def is_checkpoint(model: str, say: Callable[[str], None] | None = None) -> bool:
    """Whether MODEL is a checkpoint for transformers, here or on the hub. Errors as `find_model`."""
    if names_repository(model):
        return find_file(model, say).name == "config.json"
    return is_checkpoint_here(model)


def find_weights(config: Path) -> Checkpoint | None:
    """The safetensors beside a config.json; None where there are none.

    Raises:
        ModelError: they are damaged, or a part is missing.
    """
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (path := config.with_name(name)).is_file():
            return read_checkpoint(path)
    return None
