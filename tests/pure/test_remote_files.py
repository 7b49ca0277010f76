"""File names as publishers write them, and which models they make."""

from __future__ import annotations

import pytest

from memfit.hub.remote_files import RemoteFile, choose, shard_names, variants


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
        (chosen,) = choose(found, wanted)
        assert chosen.label == label
    assert choose(found, "Q3_K_M") == ()
    (odd,) = choose(variants(_files("b-Q6_K.gguf", "a-Q2_K.gguf")), None)
    assert odd.label == "Q2_K"  # the smallest where none is usual
    assert choose((), None) == ()


def _chosen(sizes: dict[str, int], label: str | None) -> list[str]:
    files = [
        RemoteFile(name=name, url="", size_bytes=size, etag="", sha256=None) for name, size in sizes.items()
    ]
    return [one.files[0].name for one in choose(variants(files), label)]


@pytest.mark.parametrize("label", ["Q4_K_M", "q4_k_m", None])
def test_two_models_with_one_label_are_both_named(label: str | None) -> None:
    two = {"A-0.5B-Q4_K_M.gguf": 400, "A-1.5B-Q4_K_M.gguf": 900, "A-0.5B-Q8_0.gguf": 500}
    assert _chosen(two, label) == ["A-1.5B-Q4_K_M.gguf", "A-0.5B-Q4_K_M.gguf"]
    assert _chosen(two, "Q8_0") == ["A-0.5B-Q8_0.gguf"]
    folders = {"0.5B/model-Q4_K_M.gguf": 400, "1.5B/model-Q4_K_M.gguf": 900}
    assert len(_chosen(folders, label)) == 2
    assert len(_chosen({"chat-Q4_K_M.gguf": 400, "code-Q4_K_M.gguf": 400}, label)) == 2  # of one size


def test_one_model_in_two_layouts_is_no_question() -> None:
    sizes = {
        "m-Q8_0.gguf": 1000,
        "Q8_0/m-Q8_0-00001-of-00002.gguf": 504,
        "Q8_0/m-Q8_0-00002-of-00002.gguf": 500,
        "M.q8_0.gguf": 1001,
    }
    assert _chosen(sizes, "Q8_0") == ["m-Q8_0.gguf"]


@pytest.mark.parametrize(
    "beside",
    [
        "MTP/x-MTP-Q4_K_M.gguf",
        "x-mtp-Q4_K_M.gguf",
        "x-draft-Q4_K_M.gguf",
        "draft/x-Q4_K_M.gguf",
        "x-speculative-draft-Q4_K_M.gguf",
        "x-EAGLE3-Q4_K_M.gguf",
        "x-lora-Q4_K_M.gguf",
        "adapters/x-Q4_K_M.gguf",
        "x-nextn.Q4_K_M.gguf",
    ],
)
def test_a_model_comes_before_what_goes_with_it(beside: str) -> None:
    for size in (90, 1000):
        assert _chosen({"x-Q4_K_M.gguf": 1000, beside: size, "x-Q8_0.gguf": 2000}, "Q4_K_M") == [
            "x-Q4_K_M.gguf"
        ]
        assert _chosen({"x-Q4_K_M.gguf": 1000, beside: size}, None) == ["x-Q4_K_M.gguf"]
    assert _chosen({beside: 90}, "Q4_K_M") == [beside]  # alone it may be what its owner calls so
    assert (
        len(_chosen({"x-Q4_K_M.gguf": 1000, beside: 1100}, "Q4_K_M")) == 2
    )  # no head is larger than its model


@pytest.mark.parametrize("name", ["Eagleton-7B-Q4_0.gguf", "overdrafted-Q4_0.gguf", "Flora-Q4_0.gguf"])
def test_a_word_inside_another_says_nothing(name: str) -> None:
    (found,) = variants(_files(name))
    assert not found.is_beside


def test_upper_case_endings_are_models_too() -> None:
    (found,) = variants(_files("MODEL-Q4_0.GGUF"))
    assert (found.label, found.stem) == ("Q4_0", "model")
