"""docs/colab.ipynb runs from top to bottom on a CPU, with SmolLM2 as a checkpoint; it has no outputs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from memfit.hub.local_model import local_path

pytestmark = pytest.mark.engine

_NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "colab.ipynb"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged GGUF file, dequantized."""
    transformers, torch = importlib.import_module("transformers"), importlib.import_module("torch")
    folder, demo = tmp_path_factory.mktemp("smollm2"), local_path("demo")
    source: dict[str, Any] = {"gguf_file": demo.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        demo.parent,
        **source,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(demo.parent, **source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    found = nbformat.read(_NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def test_it_is_kept_without_outputs(notebook: nbformat.NotebookNode) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    assert all(len(cell.source.splitlines()) <= 16 for cell in code)  # short enough to read at a glance


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs_from_top_to_bottom(
    notebook: nbformat.NotebookNode, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL", str(smollm2))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # no kernels but this environment's
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = "\n".join(map(_text, notebook.cells))
    assert "on colab-t4" in shown and "gpu0" in shown
    assert shown.count("Paris") >= 2  # in bf16 and in NF4
    assert "reported by transformers" in shown and "| nf4 | uint8 |" in shown
    assert any(
        "image/png" in one.get("data", {}) for cell in notebook.cells for one in cell.get("outputs", [])
    )
    assert shown.count("perplexity") >= 2


def _kinds(cell: nbformat.NotebookNode) -> list[str]:
    return [kind for one in cell.get("outputs", []) for kind in one.get("data", {})]


def _text(cell: nbformat.NotebookNode) -> str:
    """All that a cell put out, as text."""
    found = []
    for one in cell.get("outputs", []):
        data = one.get("data", {})
        found += [one.get("text", ""), data.get("text/markdown", ""), data.get("text/plain", "")]
    return "\n".join(found)
