"""Models side by side, as a user compares them."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import run_memfit
from hub_server import HubServer
from memfit.cli.compare import best_of

pytestmark = pytest.mark.engine

_TEXT = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep by the fire. " * 30


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(_TEXT)
    return str(path)


@pytest.fixture(scope="module")
def smaller(demo: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("compare") / "q3.gguf"
    assert run_memfit("quantize", demo, str(path), "--type", "Q3_K_S").code == 0
    return str(path)


def test_each_is_compared_with_the_first(demo: str, smaller: str, text: str, tmp_path: Path) -> None:
    asked = ("--text", text, "--ctx", "64", "--chunks", "2")
    picture = tmp_path / "picture.png"
    done = run_memfit("compare", demo, smaller, *asked, "--json", "--plot", str(picture), "-p", "Say yes.")
    assert done.code == 0, done.err
    first, second = done.json["models"]
    assert (first["model"], first["kl_divergence"]) == (demo, None)
    assert second["weights_bytes"] < first["weights_bytes"]
    assert [len(one["answers"]) for one in done.json["models"]] == [1, 1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    alone = run_memfit("perplexity", smaller, "--reference", demo, *asked, "--json").json
    assert second["perplexity"] == alone["perplexity"]
    assert second["kl_divergence"] == alone["kl_divergence"]
    lines = run_memfit("compare", demo, smaller, *asked).out.splitlines()
    assert (len(lines), lines[1].endswith("*")) == (3, True)
    assert demo in lines[1] and smaller in lines[2]


def test_what_was_lost_is_known_from_then_on(
    demo: str, smaller: str, text: str, hub: HubServer, tmp_path: Path
) -> None:
    asked = ("--text", text, "--ctx", "64", "--chunks", "2", "--json")
    assert run_memfit("plan", smaller, "--json").json["model"]["loss"]["basis"] == "published"
    mean = run_memfit("perplexity", smaller, "--reference", demo, *asked).json["kl_divergence"]["mean"]
    run_memfit("perplexity", demo, "--reference", smaller, *asked)  # which is no source of it
    loss = run_memfit("plan", smaller, "--json").json["model"]["loss"]
    assert (loss["basis"], loss["mean_kl"], loss["reference"]) == ("measured", mean, demo)
    assert run_memfit("plan", demo, "--json").json["model"]["loss"]["basis"] == "published"
    assert f"loses {mean:.4f} ± " in run_memfit("plan", smaller).out
    hub.add_repo("org/m", {"m-Q3_K_S.gguf": Path(smaller)})  # the same content, wherever it comes from
    assert run_memfit("pull", "hf:org/m").code == 0
    assert run_memfit("models", "--json").json["models"][0]["loss"] == loss
    assert "measured here" in run_memfit("models").out
    changed = bytearray(Path(smaller).read_bytes())
    changed[-1] ^= 1
    (tmp_path / "changed.gguf").write_bytes(changed)
    other = run_memfit("plan", str(tmp_path / "changed.gguf"), "--json").json["model"]["loss"]
    assert other["basis"] == "published"


def test_a_checkpoint_in_two_precisions(llama: Path, text: str, tmp_path: Path) -> None:
    asked = ("--text", text, "--ctx", "32", "--chunks", "1", "--json")
    picture = tmp_path / "picture.svg"
    done = run_memfit("compare", f"{llama}@fp32", f"{llama}@nf4", *asked, "--plot", str(picture))
    assert done.code == 0, done.err
    first, second = done.json["models"]
    assert second["weights_bytes"] < first["weights_bytes"]
    assert second["kl_divergence"]["mean"] > 0
    assert "<svg" in picture.read_text()


def test_what_cannot_be_compared_is_refused(demo: str, gemma: str, text: str) -> None:
    asked = ("--text", text, "--ctx", "64")
    for arguments, code, message in (
        ((demo,), 2, "two models or more"),
        ((demo, gemma), 2, "different tokens"),
        ((demo, demo, "--plot", "picture.jpg"), 2, ".png or .svg"),
        ((demo, f"{demo}@q4"), 4, "@q4"),
    ):
        done = run_memfit("compare", *arguments, *asked)
        assert (done.code, message in done.err) == (code, True), done.err


def test_the_best_of_each_size_are_those_that_none_beats() -> None:
    assert best_of([(10, 0.0), (5, 0.1), (6, 0.2), (2, 0.5), (2, 0.4)]) == [True, True, False, False, True]
    assert best_of([(1, 0.0), (1, 0.0)]) == [True, True]
