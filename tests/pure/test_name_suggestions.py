"""MODELs as tired people type them, and what they are told to type instead."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from gguf_files import tiny_model

from memfit.errors import MemfitError, ModelError, ModelNotFoundError
from memfit.hub.local_model import local_path
from memfit.hub.name_suggestions import hub_name
from memfit.hub.split_pieces import as_piece, how_to_join


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    return tmp_path


def _told(model: str) -> str:
    """The end of the message, after what is wrong."""
    with pytest.raises(MemfitError) as caught:
        local_path(model)
    assert caught.value.exit_code == 4
    return str(caught.value).partition("; ")[2] or str(caught.value)


@pytest.mark.parametrize(
    ("model", "instead"),
    [
        ("org/repo", "hf:org/repo"),
        ("org/repo:Q4_K_M", "hf:org/repo:Q4_K_M"),
        ("org/repo/", "hf:org/repo"),
        ("org/repo/model-Q4_K_M.gguf", "hf:org/repo/model-Q4_K_M.gguf"),
        ("hf.co/org/repo", "hf:org/repo"),
        ("hf.co/org/repo:Q8_0", "hf:org/repo:Q8_0"),
        ("hub.example.org/org/repo/blob/main/a-Q4_0.gguf", "hf:org/repo/a-Q4_0.gguf"),
        ("hub.example.org/org/repo/tree/main", "hf:org/repo"),
        ("HF:org/repo", "hf:org/repo"),
        ("hf://org/repo:Q4_0", "hf:org/repo:Q4_0"),
        ("ollama://llama3.2", "hf:org/repo:Q4_K_M"),
        ("ollama:hf.co/org/repo:Q4_0", "hf:org/repo:Q4_0"),
        ("llama3.2:1b", "hf:org/repo:Q4_K_M"),
        ("'a.gguf'", "a.gguf"),
        ("\N{LEFT DOUBLE QUOTATION MARK}a.gguf\N{RIGHT DOUBLE QUOTATION MARK}", "a.gguf"),
        (" a.gguf\n", "a.gguf"),
        ("~/models/a.gguf", "/home/somebody/models/a.gguf"),
        ("file:///models/a%20b.gguf", "/models/a b.gguf"),
        (r"C:\models\a.gguf", "/mnt/c/models/a.gguf"),
        (r"models\a.gguf", "models/a.gguf"),
        ("HTTPS://host/a.gguf", "https:// in small letters"),
        ("s3://bucket/a.gguf", "give its path"),
    ],
)
def test_a_name_from_elsewhere(here: Path, model: str, instead: str) -> None:
    del here
    told = _told(model)
    assert told.endswith(f" {instead}") or f" {instead}" in told
    assert told.isprintable()


def test_what_is_here_is_taken_whatever_it_looks_like(here: Path) -> None:
    (here / "org").mkdir()
    for name in ("org/repo", "a:b", "'q'.gguf", "hf.co"):
        tiny_model().write(here / name)
        assert local_path(name) == Path(name)
    assert "hf:org/other" not in _told("org/other")  # a folder here, not an owner there


def test_what_lies_beside_is_offered(here: Path) -> None:
    for name in ("Llama-Q4_K_M.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "old.gguf.gz"):
        (here / name).write_bytes(b"x")
    (here / "cut.gguf.part1of2").write_bytes(b"x")
    (here / "broken.gguf").symlink_to("gone.gguf")
    assert _told("llama-q4_k_m.gguf") == "there is Llama-Q4_K_M.gguf"
    assert _told("lama-Q4_K_M.GGUF") == "there is Llama-Q4_K_M.gguf"
    assert _told("big.gguf") == "there is big-00001-of-00002.gguf"
    assert _told("old.gguf") == "there is old.gguf.gz"
    assert _told("cut.gguf").startswith("its parts are there: cut.gguf.part1of2")
    assert _told("broken.gguf") == "it is a link to gone.gguf, which is not there"
    assert _told("./no/a.gguf") == "there is no folder no"


def test_an_empty_name_and_odd_letters(here: Path) -> None:
    (here / "a.gguf").write_bytes(b"x")
    for model in ("", " ", "\n"):
        with pytest.raises(ModelNotFoundError, match="MODEL is empty"):
            local_path(model)
    with pytest.raises(ModelNotFoundError) as caught:
        local_path("two\nlines\x1b[31m.gguf")
    assert str(caught.value).isprintable()


# --- folders ---


def _folder(root: Path, *names: str) -> str:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (40_000 if "Q8" in name else 20_000))
    return str(root)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), "it is empty"),
        (("a-Q4_0.gguf", "mmproj-F16.gguf"), "name the model in it: {0}/a-Q4_0.gguf (0.02 MiB)"),
        (
            ("a-Q4_0.gguf", "a-Q8_0.gguf"),
            "it holds 2 models; name one: {0}/a-Q4_0.gguf (0.02 MiB), {0}/a-Q8_0",
        ),
        (("sub/a-Q4_0.gguf", "README.md"), "name the model in it: {0}/sub/a-Q4_0.gguf"),
        (
            ("b-00001-of-00002.gguf", "b-00002-of-00002.gguf"),
            "name the model in it: {0}/b-00001-of-00002.gguf",
        ),
        (("b-00001-of-00002.gguf",), "only a part of a model; b-00002-of-00002.gguf is missing"),
        (("mmproj-F16.gguf",), "companions"),
        (
            ("a.gguf.part2of2", "a.gguf.part1of2"),
            "a.gguf in 2 parts; join them: cat {0}/a.gguf.part1of2 {0}/a",
        ),
        (
            ("a.gguf-split-a", "a.gguf-split-b"),
            "join them: cat {0}/a.gguf-split-a {0}/a.gguf-split-b > {0}/a.gguf",
        ),
        (("model.safetensors",), "need the config.json"),
        (("pytorch_model.bin", "tokenizer.json"), "Python pickles only"),
        (("consolidated.00.pth", "params.json"), "Python pickles only"),
        (("README.md",), "it holds no model"),
    ],
    ids=str,
)
def test_a_folder_that_is_no_checkpoint(tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    message = _told(_folder(folder, *names))
    assert told.format(folder) in message
    with pytest.raises(ModelError, match=r"is a directory without a config\.json; "):
        local_path(str(folder))


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    for base, named in (
        ("meta/Llama-1B", "the model is hf:meta/Llama-1B"),
        ("/models/base", "is /models/base"),
    ):
        config.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
        assert f"it holds an adapter of {base}" in _told(str(tmp_path))
        assert named in _told(str(tmp_path))
    for text in ("", "[", "[]", '{"base_model_name_or_path": 3}'):
        config.write_text(text)
        assert "it holds an adapter, which goes with its base model" in _told(str(tmp_path))
    config.unlink()
    os.mkfifo(config)  # must not wait for a writer
    assert "it holds an adapter" in _told(str(tmp_path))


def test_a_part_or_a_shard_of_a_checkpoint_is_no_model(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "a.gguf.part1of2", "a.gguf.part2of2")
    with pytest.raises(ModelError, match=r"part2of2 is a part of a\.gguf; .* join them: cat "):
        local_path(f"{folder}/a.gguf.part2of2")
    other = _folder(tmp_path / "b", "model.safetensors", "config.json")
    weights = Path(other, "model.safetensors")
    weights.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(ModelError, match=r"is a file of a checkpoint; name its folder: .*/b$"):
        local_path(f"{other}/model.safetensors")
    for head, what in {b"GGUF\3\0\0\0": "a GGUF file", b"<!doctype html>": "a web page"}.items():
        weights.write_bytes(head)
        with pytest.raises(ModelError, match=f"is not a safetensors file but {what}"):
            local_path(f"{other}/model.safetensors")


# --- parts ---


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("x.gguf.part1of2", "x.gguf"),
        ("x.gguf-split-a", "x.gguf"),
        ("x.gguf-split-ab", "x.gguf"),
        ("x.gguf.part-03", "x.gguf"),
        ("x.gguf.part_1_of_3", "x.gguf"),
        ("x.gguf.001", "x.gguf"),
        ("x.gguf.aa", "x.gguf"),
        ("m/x.Q4_0.gguf.parta", "m/x.Q4_0.gguf"),
        ("x.gguf", None),
        ("x.gguf.gz", None),
        ("x.gguf.incomplete", None),
        ("x-00001-of-00002.gguf", None),
        ("partial.gguf", None),
    ],
)
def test_parts_by_their_names(name: str, whole: str | None) -> None:
    part = as_piece(name)
    assert (part and part.whole) == whole


def test_parts_in_their_order() -> None:
    assert how_to_join(["x.gguf.part10", "x.gguf.part9", "README"]) == (
        "x.gguf in 2 parts; join them: cat x.gguf.part9 x.gguf.part10 > x.gguf"
    )
    assert how_to_join(["a b.gguf-split-b", "a b.gguf-split-a"], "/m") == (
        "a b.gguf in 2 parts; join them: cat '/m/a b.gguf-split-a' '/m/a b.gguf-split-b' > '/m/a b.gguf'"
    )
    assert how_to_join(["x.gguf.part1of3", "x.gguf.part3of3"]) == (
        "2 of the 3 parts of x.gguf: get the others, then join them by cat"
    )
    assert how_to_join(["x.gguf"]) is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("https://hub.example.org/org/repo", "hf:org/repo"),
        ("https://hub.example.org/org/repo/", "hf:org/repo"),
        ("https://hub.example.org/org/repo?show=files#x", "hf:org/repo"),
        ("https://hub.example.org/org/repo/tree/main/Q4_K_M", "hf:org/repo"),
        ("http://127.0.0.1:80/org/repo/resolve/main/sub/a.gguf", "hf:org/repo/sub/a.gguf"),
        ("hf:https://hub.example.org/org/repo", "hf:org/repo"),
        ("hf:hub.example.org/org/repo:Q4_0", "hf:org/repo:Q4_0"),
        ("hf:org/repo/", "hf:org/repo"),
        ("hf:org/../x", None),
        ("hf:org", None),
        ("https://host/", None),
        ("", None),
    ],
)
def test_a_hubs_name_from_an_address(text: str, named: str | None) -> None:
    assert hub_name(text) == named
