"""A checkpoint's headers and where its files lie; of a GGUF file, those of the checkpoint that it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from memfit.engines.transformers.calibrate import engine_build, require_libraries
from memfit.engines.transformers.gguf_files import find_checkpoint_of, is_converted
from memfit.errors import ModelError
from memfit.headers.hf_config import HfConfig, read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint
from memfit.headers.hf_spec import spec_of_checkpoint
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_checkpoint_writes, require_writes
from memfit.headers.safetensors import find_weights
from memfit.hub.resolve import ResolvedModel, resolve
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.precision import STORED, precision, stored_precision
from memfit.memory.precision_table import PrecisionRow, precision_row

__all__ = ["CheckpointFiles", "find_again", "find_checkpoint_files"]

_DECIDING = ("config.json", "generation_config.json", "tokenizer.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """A checkpoint, or what a GGUF file becomes as one."""

    spec: ModelSpec
    hf_config: HfConfig
    model: HfModel
    paths: tuple[Path, ...]  # of the weights
    stored_in: str  # the precision without another wish
    gguf: Path | None = None  # the file, until it has become a checkpoint
    reading_bytes: int = 0  # what a process held at most while it read that file's header

    @property
    def folder(self) -> Path:
        return self.hf_config.path.absolute().parent

    @property
    def whole_files(self) -> tuple[Path, ...]:
        """Small files that the model's answers hang on as well."""
        if self.spec.paths != self.paths:  # a GGUF file has it all
            return ()
        found = (self.folder / name for name in _DECIDING)
        return tuple(path for path in found if path.is_file())


def find_checkpoint_files(
    model: ResolvedModel, load_in: str | None, say: Callable[[str], None]
) -> CheckpointFiles:
    """Of a checkpoint or a GGUF file.

    Raises:
        ModelError: it is missing, damaged, split, or made of pickles.
        EngineMissingError: transformers is not installed, or what it reads GGUF files with.
    """
    spec, gguf, path = None, None, model.path
    if not model.is_checkpoint:
        spec = model.read_spec()
        if len(spec.paths) > 1:
            raise ModelError(
                f"{spec.source} is split into {len(spec.paths)} files, and transformers reads one; merge "
                "them with llama-gguf-split --merge"
            )
        require_writes(spec)
        gguf = find_checkpoint_of(path, dtype=precision(load_in or "bf16").plain_type, say=say)
        path = gguf.folder / "config.json"
    else:
        require_checkpoint_writes(model.source, path)
    hf_config, weights = read_config(path), find_weights(path)
    if weights is None:
        raise ModelError(_no_weights(hf_config))
    hf_model = model_from_checkpoint(hf_config, weights)
    return CheckpointFiles(
        spec=spec or spec_of_checkpoint(model.source, hf_config, weights, hf_model),
        hf_config=hf_config,
        model=hf_model,
        paths=weights.paths,
        stored_in="bf16" if spec else _stored_in(hf_config),
        gguf=spec.paths[0] if spec and gguf and not gguf.is_whole else None,
        reading_bytes=gguf.reading_bytes if gguf else 0,
    )


def _stored_in(hf_config: HfConfig) -> str:
    return STORED if hf_config.quantization else stored_precision(hf_config.dtype).name


def find_again(
    config: TransformersConfig, model: str, say: Callable[[str], None], *, moved: bool
) -> tuple[CheckpointFiles, PrecisionRow, str]:
    """The checkpoint of a saved plan, what it takes in its precision, and the engine with its build.

    It is where it was, unless it has `moved` to `model`, or is what a GGUF file becomes.
    """
    require_libraries()
    named = model if moved or is_converted(config.folder) else str(config.folder)
    found = find_checkpoint_files(replace(resolve(named, say), source=model), config.load_in, say)
    return found, precision_row(found.model, config.precision, config.context), engine_build()


def _no_weights(hf_config: HfConfig) -> str:
    folder = hf_config.path.parent
    for name in _PICKLES:
        if (folder / name).exists():
            return (
                f"{folder} holds {name}, a pickle: loading one runs whatever program is in it, so memfit "
                "does not; look for the same model as safetensors, or convert it where you trust it"
            )
    return f"there are no safetensors in {folder}"
