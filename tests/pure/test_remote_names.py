"""File names as publishers write them, and which models they make."""

from __future__ import annotations

import pytest

from memfit.headers.remote.names import RemoteFile, choose, shard_names, variants


def _files(*names: str) -> list[RemoteFile]:
    return [
        RemoteFile(name=name, url=f"http://hub/{name}", size_bytes=100 - index, etag=name, sha256=None)
        for index, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("model-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gemma-3-4b-it-BF16.gguf", "BF16"),
        ("Q8_0/Qwen3-235B-Q8_0-00001-of-00001.gguf", "Q8_0"),
        ("Q6_K/model-00001-of-00001.gguf", "Q6_K"),
        ("IQ4_XS/IQ4_NL-model.gguf", "IQ4_NL"),
        ("plain.gguf", "plain"),
    ],
)
def test_labels(name: str, label: str) -> None:
    (found,) = variants(_files(name))
    assert found.label == label


def test_companions_and_halves_are_no_models() -> None:
    names = [
        "mmproj-F16.gguf",
        "mmproj/model-f16.gguf",
        "model.imatrix.gguf",
        "half-Q4_0-00001-of-00002.gguf",
        "half-Q8_0-00002-of-00002.gguf",
        "README.md",
        "model.safetensors",
    ]
    assert variants(_files(*names)) == ()


def test_shards_are_one_model_in_order() -> None:
    names = ["m-Q4_0-00002-of-00003.gguf", "m-Q4_0-00003-of-00003.gguf", "m-Q4_0-00001-of-00003.gguf"]
    (found,) = variants(_files(*names))
    assert [file.name for file in found.files] == sorted(names)
    assert found.size_bytes == 100 + 99 + 98
    assert shard_names(names[0]) == tuple(sorted(names))
    assert shard_names("m-Q4_0.gguf") == ("m-Q4_0.gguf",)


def test_a_choice_by_label_and_without_one() -> None:
    found = variants(_files("m-Q8_0.gguf", "m-Q5_K_M.gguf", "m-Q4_K_M.gguf", "m-Q2_K.gguf"))
    assert [one.label for one in found] == ["Q8_0", "Q5_K_M", "Q4_K_M", "Q2_K"]
    for wanted, label in (("q8_0", "Q8_0"), (None, "Q4_K_M"), ("Q2_K", "Q2_K")):
        chosen = choose(found, wanted)
        assert chosen is not None and chosen.label == label
    assert choose(found, "Q3_K_M") is None
    odd = choose(variants(_files("b-Q6_K.gguf", "a-Q2_K.gguf")), None)
    assert odd is not None and odd.label == "Q2_K"  # the smallest where none is usual
    assert choose((), None) is None
