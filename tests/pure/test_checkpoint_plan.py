"""Plans of checkpoints, counted by hand: nothing is loaded, measured or installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import make_machine

from memfit.errors import UsageError
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import HfModel, model_from_config
from memfit.headers.model_spec import ModelSpec
from memfit.memory.checkpoint import (
    TransformersParameters,
    layer_bytes,
    loading_peak_bytes,
    packed_state_bytes,
    planned_kv_bytes,
    refused_layer,
)
from memfit.planner.checkpoint import Runtime, TransformersPlan, plan_checkpoint
from memfit.planner.request import Budget, Workload
from memfit.units import MIB

# Per layer: q and o 64 x 64, k and v 32 x 64, three of 128 x 64, two norms of 64.
_CONFIG = {
    "model_type": "llama",
    "dtype": "float32",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 11,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_LAYER = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64
_RUNTIME = Runtime(
    process_bytes=100 * MIB,
    loading_process_bytes=90 * MIB,
    starting_bytes=95 * MIB,
    packs_4bit=True,
    layer_seconds=1e-4,
    elements_per_second={"fp32": 1e9, "bf16": 2e9},
    operations_per_second={"fp32": 1e11, "bf16": 2e11},
    disk_bytes_per_second=1e9,
)


def _model(folder: Path, **changes: Any) -> HfModel:
    path = folder / "config.json"
    path.write_text(json.dumps({**_CONFIG, **changes}))
    return model_from_config(read_config(path))


def _plan(
    model: HfModel, *, ram: int, load_in: str = "fp32", disk: bool = True, context: int = 256
) -> TransformersPlan:
    spec = ModelSpec(
        source="folder",
        paths=(),
        file_bytes=0,
        data_offset_bytes=(),
        architecture="llama",
        name="folder",
        quantization="F32",
        parameters=0,
        context_length=8192,
        vocabulary=1000,
        metadata={},
        tensors=(),
    )
    parameters = TransformersParameters(
        folder=Path("folder"),
        paths=(),
        load_in=load_in,
        double_quant=False,
        context=0,
        micro_batch=0,
        threads=2,
    )
    budget, workload = Budget(ram=ram, disk=disk), Workload(context=context)
    return plan_checkpoint(spec, model, parameters, make_machine(), budget, workload, [_RUNTIME])


def test_bytes_of_a_resident_checkpoint(tmp_path: Path) -> None:
    plan = _plan(_model(tmp_path), ram=200 * MIB)
    buffers = plan.row.buffers_bytes or 0
    assert plan.fits and plan.streamed_bytes == 0 and plan.micro_batch == 256
    assert plan.ram.weights_bytes == 4 * (1000 * 64 + 11 * _LAYER + 64) + buffers
    assert plan.ram.kv_cache_bytes == 11 * 2 * 256 * 32 * 4
    assert plan.steady_bytes == 100 * MIB + plan.ram.weights_bytes + plan.ram.kv_cache_bytes
    assert plan.to_json()["engine"] == "transformers"


def test_a_window_keeps_room_for_itself_and_a_micro_batch(tmp_path: Path) -> None:
    model = _model(tmp_path, model_type="mistral", sliding_window=100)
    config = model.config
    assert planned_kv_bytes(config, 4096, 64, 2) == 11 * (99 + 64) * 2 * 32 * 2
    assert planned_kv_bytes(config, 120, 64, 2) == 11 * 120 * 2 * 32 * 2


def test_layer_10_is_loaded_after_layer_2_and_the_embedding_first(tmp_path: Path) -> None:
    model = _model(tmp_path)
    embedding = 1000 * 64
    whole = 2 * (embedding + 11 * _LAYER + 64)
    assert loading_peak_bytes(model, "fp32") == 2 * whole
    # The worst moment is near the end: q of layer 10 in both types; v and a norm come after.
    assert 6 * embedding < whole
    assert loading_peak_bytes(model, "bf16") == whole - 2 * (32 * 64 + 64) + 4 * 64 * 64


def test_as_few_layers_as_will_do_stay_on_the_disk(tmp_path: Path) -> None:
    model = _model(tmp_path, intermediate_size=64 * 1024)
    sizes = list(layer_bytes(model, "fp32").values())
    whole = _plan(model, ram=4096 * MIB, context=32)
    smallest = _plan(model, ram=whole.ram.total_bytes - 2 * sizes[0], context=32)
    assert smallest.fits
    streamed = [module for module, place in smallest.parameters.device_map if place == "disk"]
    assert streamed == [f"model.layers.{index}" for index in range(11 - len(streamed), 11)]
    assert smallest.streamed_bytes == sum(sizes[-len(streamed) :])
    fewer = _plan(model, ram=smallest.ram.needs_bytes + sizes[0], context=32)
    assert len(fewer.parameters.device_map) == len(smallest.parameters.device_map)
    assert fewer.streamed_bytes == smallest.streamed_bytes - sizes[0]
    assert not _plan(model, ram=smallest.ram.needs_bytes, disk=False, context=32).fits


def test_what_would_fit_is_said(tmp_path: Path) -> None:
    model = _model(tmp_path, intermediate_size=64 * 1024)
    plan = _plan(model, ram=370 * MIB, disk=False, context=32)
    assert not plan.fits and plan.suggestions[0].startswith("--load-in ")
    smaller = plan.suggestions[0].split()[1]
    assert _plan(model, ram=370 * MIB, load_in=smaller, disk=False, context=32).fits
    enough = int(plan.suggestions[-1].removeprefix("--ram ").removesuffix("MiB")) * MIB
    assert _plan(model, ram=enough, disk=False, context=32).fits


def test_4_bit_layers_that_this_cpu_cannot_pack_are_refused(tmp_path: Path) -> None:
    model = _model(tmp_path, intermediate_size=100)
    layer = refused_layer(model)
    assert layer is not None and layer.shape in ((100, 64), (64, 100))
    with pytest.raises(UsageError, match="packs rows by 32"):
        _plan(model, ram=500 * MIB, load_in="nf4")
    assert packed_state_bytes(_model(tmp_path), double_quant=False) == 11 * (
        2 * (_LAYER - 2 * 64) // 64 + 7 * 64
    )


def test_parameters_survive_being_json() -> None:
    one = TransformersParameters(
        folder=Path("/folder"),
        paths=(Path("/folder/model.safetensors"),),
        load_in="nf4",
        double_quant=True,
        context=4096,
        micro_batch=512,
        threads=2,
        device_map=(("model.layers.0", "cpu"), ("model.layers.1", "disk")),
    )
    assert TransformersParameters.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.precision == "nf4-dq" and replace(one, double_quant=False).precision == "nf4"
