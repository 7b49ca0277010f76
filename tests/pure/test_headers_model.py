"""From files to a ModelSpec: the values drawn from the metadata, split models, companions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import make_spec
from gguf_files import (
    ARRAY,
    BOOL,
    INT32,
    UINT16,
    GgufFile,
    Tensor,
    Value,
    number,
    text,
    tiny_metadata,
    tiny_model,
    tiny_tensors,
)

from memfit.errors import HeaderError, ModelError, ModelNotFoundError
from memfit.headers import read_model


def test_a_tiny_model_by_hand(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "tiny.gguf")
    spec = read_model(path, source="what the user said")
    assert spec.source == "what the user said"
    assert spec.paths == (path,)
    assert spec.file_bytes == path.stat().st_size
    assert (spec.architecture, spec.name, spec.quantization) == ("llama", "Tiny", "Q8_0")
    assert spec.n_params == 64 * 3 + 64 + 64 * 64
    assert spec.weights_bytes == 204 + 256 + 8192
    assert (spec.context_length, spec.vocabulary) == (512, 3)
    assert spec.architecture_value("block_count") == 2
    assert [tensor.file_index for tensor in spec.tensors] == [0, 0, 0]
    assert spec.data_offset_bytes == (spec.tensors[0].offset_bytes,)


@pytest.mark.parametrize(
    ("count", "used", "share"), [(60, 4, 4 / 60), (8, 8, 1.0), (8, 9, 1.0), (8, 0, 1.0), (0, 2, 1.0)]
)
def test_the_share_of_a_tensor_that_a_token_is_multiplied_with(count: int, used: int, share: float) -> None:
    spec = make_spec(n_experts=count, n_experts_used=used)
    for name in ("blk.3.ffn_up_exps.weight", "blk.3.ffn_up_chexps.weight", "model.layers.3.mlp.experts.up"):
        assert spec.active_share(name) == share
    for name in ("blk.3.ffn_up_shexp.weight", "blk.3.ffn_up.weight", "model.layers.3.mlp.shared_experts.up"):
        assert spec.active_share(name) == 1.0


def test_experts_of_the_metadata(tmp_path: Path) -> None:
    model = tiny_model(llama__expert_count=number(60), llama__expert_used_count=number(4))
    spec = read_model(model.write(tmp_path / "moe.gguf"))
    assert (spec.n_experts, spec.n_experts_used) == (60, 4)


def test_the_source_is_the_path_by_default(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "tiny.gguf")
    assert read_model(str(path)).source == str(path)


def _without(*keys: str) -> GgufFile:
    metadata = {key: value for key, value in tiny_metadata().items() if key not in keys}
    return GgufFile(metadata, tiny_tensors())


def test_what_is_absent_is_filled_in(tmp_path: Path) -> None:
    file = _without("general.name", "general.file_type", "tokenizer.ggml.tokens")
    spec = read_model(file.write(tmp_path / "some-model.gguf"))
    assert spec.name == "some-model"
    assert spec.quantization == "F16"  # 8192 of 8652 bytes
    assert spec.vocabulary == 0


def test_an_unknown_file_type_is_not_guessed(tmp_path: Path) -> None:
    spec = read_model(tiny_model(general__file_type=number(999)).write(tmp_path / "m.gguf"))
    assert spec.quantization == "F16"


def test_the_vocabulary_may_be_a_number(tmp_path: Path) -> None:
    metadata = tiny_metadata(llama__vocab_size=number(77))
    del metadata["tokenizer.ggml.tokens"]
    assert read_model(GgufFile(metadata, tiny_tensors()).write(tmp_path / "m")).vocabulary == 77


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (_without("general.architecture"), "general.architecture: is missing"),
        (tiny_model(general__architecture=text("")), "general.architecture: is missing"),
        (_without("llama.context_length"), "llama.context_length: is missing"),
        (tiny_model(llama__context_length=number(0)), "not a positive number"),
        (tiny_model(llama__context_length=Value(BOOL, True)), "not a positive number"),
        (tiny_model(llama__context_length=Value(INT32, -1)), "not a positive number"),
        (tiny_model(llama__context_length=Value(ARRAY, [1], INT32)), "not a positive number"),
        (replace(tiny_model(), tensors=()), "tensors: the file holds none"),
        (tiny_model(general__type=text("adapter")), "a LoRA adapter: a companion file"),
        (tiny_model(general__type=text("mmproj")), "a multimodal projector: a companion file"),
        (tiny_model(general__architecture=text("clip")), "projector: a companion file"),
        (GgufFile({"general.type": text("imatrix")}), "an importance matrix: a companion file"),
    ],
)
def test_what_is_no_model_says_so(tmp_path: Path, file: GgufFile, message: str) -> None:
    with pytest.raises(HeaderError) as caught:
        read_model(file.write(tmp_path / "m.gguf"))
    assert message in str(caught.value)


def _write_split(
    folder: Path,
    shards: Sequence[Sequence[Tensor]],
    *,
    tensor_count: int | None = None,
    numbers: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
    file_count: int | None = None,
) -> list[Path]:
    """A split model as llama.cpp's splitter writes it: later shards hold only split.* keys."""
    total = sum(map(len, shards)) if tensor_count is None else tensor_count
    paths = []
    for index, tensors in enumerate(shards):
        split = {
            "split.no": Value(UINT16, numbers[index] if numbers else index),
            "split.count": Value(UINT16, counts[index] if counts else len(shards)),
            "split.tensors.count": Value(INT32, total),
        }
        metadata = {**(tiny_metadata() if index == 0 else {}), **split}
        path = folder / f"tiny-{index + 1:05d}-of-{file_count or len(shards):05d}.gguf"
        paths.append(GgufFile(metadata, tensors).write(path))
    return paths


_EMBEDDING, _NORM, _ATTENTION = tiny_tensors()
_SHARDS = ((), (_EMBEDDING, _NORM), (_ATTENTION,))


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_shard_names_the_whole_model(tmp_path: Path, given: int) -> None:
    paths = _write_split(tmp_path, _SHARDS)
    spec = read_model(paths[given])
    assert spec.paths == tuple(paths)
    assert spec.name == "Tiny"
    assert [(tensor.name, tensor.file_index) for tensor in spec.tensors] == [
        (_EMBEDDING.name, 1),
        (_NORM.name, 1),
        (_ATTENTION.name, 2),
    ]
    assert spec.file_bytes == sum(path.stat().st_size for path in paths)
    assert spec.weights_bytes == 204 + 256 + 8192
    assert spec.tensors[2].offset_bytes == spec.data_offset_bytes[2]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths = _write_split(tmp_path, _SHARDS)
    paths[1].unlink()
    with pytest.raises(ModelNotFoundError) as caught:
        read_model(paths[2])
    assert "shard 2 of 3 is missing" in str(caught.value)
    assert str(paths[1]) in str(caught.value)


@pytest.mark.parametrize("name", ["renamed.gguf", "tiny-00004-of-00003.gguf"])
def test_a_shard_under_another_name_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_write_split(tmp_path, _SHARDS)[0].read_bytes())
    with pytest.raises(HeaderError, match="must be named like model-00001-of-00003"):
        read_model(path)


def test_two_shards_swapped_are_an_error(tmp_path: Path) -> None:
    paths = _write_split(tmp_path, _SHARDS, numbers=(0, 2, 1))
    with pytest.raises(HeaderError, match=r"split\.no: is 2, must be 1"):
        read_model(paths[0])
    with pytest.raises(HeaderError, match=r"split\.no: is 2, must be 1"):
        read_model(paths[1])


def test_shards_of_two_models_are_an_error(tmp_path: Path) -> None:
    paths = _write_split(tmp_path, _SHARDS, counts=(3, 4, 3))
    with pytest.raises(HeaderError, match=r"split\.count: is 4, must be 3"):
        read_model(paths[0])


def test_names_and_metadata_that_disagree_are_an_error(tmp_path: Path) -> None:
    paths = _write_split(tmp_path, _SHARDS, file_count=9)
    with pytest.raises(HeaderError, match="one of 3 shards must be named"):
        read_model(paths[0])


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    paths = _write_split(tmp_path, ((_NORM,), (_NORM,)))
    with pytest.raises(HeaderError, match=r"tensor 'output_norm\.weight': is in another shard"):
        read_model(paths[0])


def test_a_wrong_total_of_tensors_is_an_error(tmp_path: Path) -> None:
    paths = _write_split(tmp_path, _SHARDS, tensor_count=4)
    with pytest.raises(HeaderError, match=r"split\.tensors\.count: is 4, must be 3"):
        read_model(paths[0])


def test_a_split_of_one_is_one_file_under_any_name(tmp_path: Path) -> None:
    path = tiny_model(split__count=Value(UINT16, 1)).write(tmp_path / "any.gguf")
    assert read_model(path).paths == (path,)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    paths = _write_split(tmp_path, _SHARDS)
    paths[2].write_bytes(b"not a GGUF file at all")
    with pytest.raises(ModelError) as caught:
        read_model(paths[0])
    assert str(paths[2]) in str(caught.value)
