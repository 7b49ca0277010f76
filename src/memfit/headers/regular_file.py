"""Checks a model's file before it is opened: it exists, is a regular file, and has a size."""

from __future__ import annotations

import stat
from pathlib import Path

from memfit.errors import ModelError, ModelNotFoundError

__all__ = ["NO_CHECKPOINT", "require_file", "shown_path"]

NO_CHECKPOINT = "{} is a directory without a config.json"


def require_file(path: Path) -> int:
    """Size in bytes of a regular file. Never opens it, so a pipe cannot make it wait.

    Raises:
        ModelNotFoundError, ModelError: nothing is there, or it is no plain file.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(
            f"no such file: {shown_path(path)}; a model is a path to a .gguf file, or demo"
        ) from None
    except OSError as error:
        raise ModelError(f"cannot read {shown_path(path)}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise ModelNotFoundError(f"no such file: {str(path)!r}: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise ModelError(
            f"{NO_CHECKPOINT.format(shown_path(path))}; a model is a .gguf file, or a directory with "
            "config.json and safetensors"
        )
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{shown_path(path)} is a pipe, socket or device; a model must be a regular file")
    return status.st_size


def shown_path(path: Path | str) -> str:
    """A path in a message: on one line, whatever is in it."""
    return str(path) if str(path).isprintable() else repr(str(path))
