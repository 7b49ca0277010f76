"""What a server has done to the library: names as clients send them, lists, deletions that spare a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import tiny_model

from hub_server import HubServer
from memfit.errors import ModelNotFoundError, UsageError
from memfit.hub.library import local_models
from memfit.hub.library_work import delete, describe_models, download
from memfit.server.library import library_name


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("hf.co/org/m:Q4_K_M", "hf:org/m:Q4_K_M"),
        ("huggingface.co/org/m", "hf:org/m"),
        ("https://hf.co/org/m:Q4_0", "hf:org/m:Q4_0"),
        ("hf.co/org/m:latest", "hf:org/m"),
        ("hf:org/m/m-Q4_0.gguf", "hf:org/m/m-Q4_0.gguf"),
        ("https://example.org/a/m.gguf", "https://example.org/a/m.gguf"),
        ("https://example.org/m.GGUF?download=true", "https://example.org/m.GGUF?download=true"),
    ],
)
def test_names_of_clients_are_names_of_models(sent: str, name: str) -> None:
    assert library_name(sent) == name


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("llama3.2", "send hf.co/org/repo:Q4_K_M"),
        ("org/m:Q4_0", "this one is hf:org/m:Q4_0"),
        ("http://example.org/m.gguf", "send hf.co/org/repo:Q4_K_M or https://"),
        ("https://example.org/page", "https://…/file.gguf"),
        ("/etc/passwd", "send"),
        ("", "send"),
        ("a\x1b[2J", "a\N{REPLACEMENT CHARACTER}[2J: no model has such a name"),
    ],
)
def test_other_names_are_told_what_to_send(sent: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        library_name(sent)
    assert said in str(caught.value) and caught.value.field == "model"


@pytest.fixture
def pulled(hub: HubServer, tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    """A repository of two models that are here; the events of the last download."""
    model = tiny_model().write(tmp_path / "m.gguf")
    hub.add_repo("org/m", {"m-F32.gguf": model, "m-Q8_0.gguf": b"no model"})
    download("hf:org/m:Q8_0", lambda *_, **__: None)
    events: list[tuple[str, dict[str, Any]]] = []
    download("hf:org/m:F32", lambda event, **values: events.append((event, values)))
    return events


def test_a_download_tells_how_far_it_is(pulled: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    size = (tmp_path / "m.gguf").stat().st_size
    assert pulled[0][0] == "found" and pulled[0][1]["size_bytes"] == size
    assert len(pulled[0][1]["digest"]) == 64
    assert pulled[-1] == ("downloading", {"done": size, "whole": size})
    assert ("checking", {"done": size, "whole": size}) in pulled


@pytest.mark.usefixtures("pulled")
def test_models_are_described_by_their_headers() -> None:
    good, bad = describe_models()
    assert good["name"] == "hf:org/m/m-F32.gguf" and good["family"] == "llama"
    assert good["parameters"] > 0 and good["context"] > 0 and good["format"] == "gguf"
    assert good["digest"] in good["paths"][0]
    assert (bad["name"], bad["family"], bad["parameters"]) == ("hf:org/m/m-Q8_0.gguf", "", 0)


@pytest.mark.usefixtures("pulled")
def test_one_model_is_deleted_and_one_that_is_kept_stays() -> None:
    with pytest.raises(UsageError, match=r"name one of them: hf:org/m/m-F32.gguf, hf:org/m/m-Q8_0.gguf"):
        delete("hf:org/m", ())
    kept = [Path(path) for path in describe_models()[0]["paths"]]
    assert delete("hf:org/m:F32", kept) == {"freed_bytes": None}
    assert delete("hf:org/m:Q8_0", kept) == {"freed_bytes": len(b"no model")}
    assert [one.name for one in local_models()] == ["hf:org/m/m-F32.gguf"]
    with pytest.raises(ModelNotFoundError):
        delete("hf:org/m:Q8_0", kept)
