"""Recipes as JSON files: which type each tensor of a model gets, to make the same file again.

Beside FILE.json lies FILE.types.txt, the same as llama-quantize's --tensor-type-file wants it; and
FILE.imatrix.gguf, the importance matrix, where it was collected for this.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from memfit.errors import UsageError
from memfit.headers.model_spec import ModelSpec
from memfit.headers.tensor_types import FILE_TYPES, WRITTEN
from memfit.quantize.job import Recipe
from memfit.quantize.whole_file import whole_file

if TYPE_CHECKING:  # which brings the engine, and a recipe is read without
    from memfit.quantize.target import Chosen

__all__ = ["read_recipe", "recipe_files", "save_recipe"]

_VERSION = 1
_MOST_BYTES = 16 << 20


def recipe_files(path: Path) -> tuple[Path, Path, Path]:
    """A recipe, what llama-quantize reads, and an importance matrix that was collected for it.

    Raises:
        UsageError: that is no name of a file.
    """
    if not path.name:
        raise UsageError(f"--save-recipe {path} is no file", field="--save-recipe")
    return path, path.with_suffix(".types.txt"), path.with_suffix(".imatrix.gguf")


def save_recipe(path: Path, spec: ModelSpec, chosen: Chosen, *, imatrix: Path | None) -> None:
    """With the importance matrix beside it, unless that is the user's own, `imatrix`. Old files are replaced;
    the recipe comes last.

    Raises:
        OutputError: it cannot be written.
    """
    recipe = chosen.recipe
    path, types, collected = recipe_files(path)
    assert recipe.imatrix is not None
    if imatrix is None:
        with whole_file(collected, (), recipe.imatrix.stat().st_size, overwrite=True) as partial:
            shutil.copyfile(recipe.imatrix, partial)
    # Regular expressions over lower-case names, and the first that is found in one decides.
    lines = [f"^{re.escape(name.lower())}$={kind.lower()}\n" for name, kind in recipe.types.items()]
    document = {
        "memfit_recipe": _VERSION,
        "model": spec.source,
        "parameters": spec.n_params,
        "file_type": recipe.file_type,
        "file_bytes": chosen.looked.file_bytes,
        "expected_kl_divergence": chosen.expected_loss,
        "imatrix": str(imatrix.absolute()) if imatrix else collected.name,
        "types": dict(recipe.types),
    }
    for file, text in ((types, "".join(lines)), (path, json.dumps(document, indent=1) + "\n")):
        with whole_file(file, (), len(text), overwrite=True) as partial:
            partial.write_text(text)


def read_recipe(path: Path, spec: ModelSpec, *, imatrix: Path | None) -> Recipe:
    """For a model that has the recipe's tensors; `imatrix` stands in for the recipe's own.

    Raises:
        UsageError: it is no recipe, or for another model.
    """
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MOST_BYTES))
        version, called, types = (document[name] for name in ("memfit_recipe", "file_type", "types"))
        own = document["imatrix"]
        if version != _VERSION or called not in FILE_TYPES.values() or not isinstance(own, str | None):
            raise ValueError
        if not types or not all(kind in WRITTEN for kind in types.values()):
            raise ValueError
    except OSError as error:
        raise UsageError(f"--recipe {path}: {error.strerror}", field="--recipe") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        problem = f"--recipe {path}: not a recipe that memfit quantize --save-recipe wrote"
        raise UsageError(problem, field="--recipe") from None
    known = {one.name for one in spec.tensors}
    if missing := [name for name in types if name not in known]:
        raise UsageError(
            f"--recipe {path} is for another model: {spec.source} lacks {len(missing)} of its tensors, "
            f"{missing[0]} among them",
            field="--recipe",
        )
    if imatrix is None and own:
        imatrix = path.parent / own
    return Recipe(file_type=called, types=types, imatrix=imatrix)
