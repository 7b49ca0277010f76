"""The tables against gguf-py's, and against the lines of ggml-common.h where gguf-py is behind."""

from __future__ import annotations

import gguf
import pytest

from memfit.headers.tensor_types import FILE_TYPES, TENSOR_TYPES

# What gguf-py 0.18.0 does not know, or has wrong, by hand from the structs in ggml-common.h.
_BY_HAND = {
    9: ("Q8_1", 32, 2 * 2 + 32),  # gguf-py counts two 4-byte scales; block_q8_1 has two halfs
    40: ("NVFP4", 64, 64 // 16 + 64 // 2),
    41: ("Q1_0", 128, 2 + 128 // 8),
    42: ("Q2_0", 64, 2 + 64 // 4),
}


def test_every_tensor_type_has_the_sizes_that_others_give_it() -> None:
    expected = {
        int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType
    } | _BY_HAND
    ours = {
        number: (kind.name, kind.block_elements, kind.block_bytes) for number, kind in TENSOR_TYPES.items()
    }
    assert ours == expected


def test_every_file_type_has_llama_cpps_name() -> None:
    expected = {
        int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for kind in gguf.LlamaFileType
        if kind is not gguf.LlamaFileType.GUESSED
    }
    newer = {38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0"}
    assert expected | newer == FILE_TYPES


@pytest.mark.parametrize("number", [4, 5, 31, 32, 33, 36, 37, 38, 43])
def test_types_that_left_the_format_are_unknown(number: int) -> None:
    assert number not in TENSOR_TYPES
