"""What was measured of a model stays known, by its files' content."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memfit.known_losses import keep_loss, known_loss, loss_of
from memfit.planner.fingerprint import FileMark

_MARKS = (FileMark(size_bytes=400, sha256="ab"), FileMark(size_bytes=300, sha256="cd"))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _plan(source: str, size: int, *, n_params: int = 1000, **facts: Any) -> Any:
    spec = SimpleNamespace(source=source, file_bytes=size, n_params=n_params, quantization="Q4_K_M")
    given = {"engine": "llamacpp", "kv_type": "f16", "files": _MARKS, **facts}
    return SimpleNamespace(
        spec=spec,
        engine=given["engine"],
        facts={"kv_type": given["kv_type"]},
        fingerprint=SimpleNamespace(files=given["files"]) if given["files"] else None,
    )


def _keep(plan: Any, reference: Any, mean_kl: float = 0.5, tokens: int = 100) -> None:
    keep_loss(plan, reference, mean_kl=mean_kl, error=0.01, tokens=tokens)


def _known() -> float | None:
    found = known_loss(_MARKS)
    return found.mean_kl if found else None


def test_what_was_measured_is_found_by_content() -> None:
    plan = _plan("q4", 700)
    assert loss_of(plan.spec, _MARKS).basis == "published"
    _keep(plan, _plan("f16", 2000))
    found = loss_of(plan.spec, _MARKS)
    assert (found.mean_kl, found.basis, found.reference, found.tokens) == (0.5, "measured", "f16", 100)
    assert known_loss(_MARKS[:1]) is None and known_loss(_MARKS[::-1]) is None


def test_the_better_measurement_stays() -> None:
    plan = _plan("q4", 700)
    _keep(plan, _plan("q8", 1000), 0.4, 100)
    _keep(plan, _plan("f16", 2000), 0.5, 50)  # against a larger file
    assert _known() == 0.5
    _keep(plan, _plan("q8", 1000), 0.4, 900)
    assert _known() == 0.5
    _keep(plan, _plan("f16", 2000), 0.6, 40)  # fewer tokens
    assert _known() == 0.5
    _keep(plan, _plan("f16", 2000), 0.7, 50)  # as good, and later
    assert _known() == 0.7


@pytest.mark.parametrize(
    ("plan", "reference"),
    [
        (_plan("q8", 1000), _plan("q4", 700)),  # no source of it
        (_plan("small", 700, n_params=500), _plan("large", 2000)),  # another model
        (_plan("q4", 700, kv_type="q8_0"), _plan("f16", 2000)),  # the cache's loss is in it
        (_plan("q4", 700, engine="transformers"), _plan("f16", 2000)),
        (_plan("q4", 700, files=()), _plan("f16", 2000)),
    ],
)
def test_what_is_no_loss_of_quantizing_is_not_kept(plan: Any, reference: Any) -> None:
    _keep(plan, reference)
    assert _known() is None


def test_what_another_version_left_is_passed_over(tmp_path: Path) -> None:
    _keep(_plan("q4", 700), _plan("f16", 2000))
    (kept,) = (tmp_path / "memfit" / "losses").iterdir()
    kept.write_text(kept.read_text().replace('"mean_kl": 0.5', '"mean_kl": "much"'))
    assert _known() is None
