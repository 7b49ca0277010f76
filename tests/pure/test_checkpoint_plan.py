"""Plans of checkpoints, counted by hand: nothing is loaded, measured or installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import make_machine, write_checkpoint

from memfit.errors import UsageError
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint, model_from_config
from memfit.headers.hf_spec import spec_of_checkpoint
from memfit.headers.model_spec import ModelSpec
from memfit.headers.safetensors import read_checkpoint
from memfit.memory.loaded_checkpoint import (
    TransformersConfig,
    layer_bytes,
    loading_peak_bytes,
    packed_state_bytes,
    refused_layer,
)
from memfit.memory.precision import precision
from memfit.memory.precision_table import layer_kv_bytes
from memfit.planner.request import Budget, Workload
from memfit.planner.transformers.planner import plan_checkpoint
from memfit.planner.transformers.runtime import GpuRuntime, Runtime
from memfit.planner.transformers.tiers import LayerCosts, counts_on_gpus, device_map, device_of
from memfit.planner.transformers.transformers_plan import TransformersPlan
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
    disk_bytes_per_second=(1e9, 1e9),
)


def _model(folder: Path, **changes: Any) -> HfModel:
    path = folder / "config.json"
    path.write_text(json.dumps({**_CONFIG, **changes}))
    return model_from_config(read_config(path))


def _plan(
    model: HfModel,
    *,
    ram: int,
    load_in: str = "fp32",
    disk: bool = True,
    context: int = 256,
    runtimes: Sequence[Runtime] = (_RUNTIME,),
    spec: ModelSpec | None = None,
    **asked: Any,
) -> TransformersPlan:
    spec = spec or ModelSpec(
        source="folder",
        paths=(),
        file_bytes=0,
        data_offset_bytes=(),
        architecture="llama",
        name="folder",
        quantization="F32",
        n_params=0,
        context_length=8192,
        vocabulary=1000,
        metadata={},
        tensors=(),
    )
    config = TransformersConfig(
        folder=Path("folder"),
        paths=(),
        load_in=load_in,
        double_quant=False,
        context=0,
        ubatch=0,
        threads=2,
    )
    budget, workload = Budget(ram=ram, disk=disk), Workload(context=context, **asked)
    return plan_checkpoint(spec, model, config, make_machine(), budget, workload, runtimes)


def test_bytes_of_a_resident_checkpoint(tmp_path: Path) -> None:
    plan = _plan(_model(tmp_path), ram=200 * MIB)
    buffers = plan.row.buffers_bytes or 0
    assert plan.fits and plan.streamed_bytes == 0 and plan.ubatch == 256
    assert plan.ram.weights_bytes == 4 * (1000 * 64 + 11 * _LAYER + 64) + buffers
    assert plan.ram.kv_cache_bytes == 11 * 2 * 256 * 32 * 4
    assert plan.steady_bytes == 100 * MIB + plan.ram.weights_bytes + plan.ram.kv_cache_bytes
    assert plan.to_json()["engine"] == "transformers"


def test_a_window_keeps_room_for_itself_and_a_ubatch(tmp_path: Path) -> None:
    model = _model(tmp_path, model_type="mistral", sliding_window=100)
    config = model.hf_config
    assert sum(layer_kv_bytes(config, 4096, 64, 2)) == 11 * (99 + 64) * 2 * 32 * 2
    assert sum(layer_kv_bytes(config, 120, 64, 2)) == 11 * 120 * 2 * 32 * 2


def test_layer_10_is_loaded_after_layer_2_and_the_embedding_first(tmp_path: Path) -> None:
    model = _model(tmp_path)
    embedding = 1000 * 64
    whole = 2 * (embedding + 11 * _LAYER + 64)
    assert loading_peak_bytes(model, precision("fp32")) == 2 * whole
    # The worst moment is near the end: q of layer 10 in both types; v and a norm come after.
    assert 6 * embedding < whole
    assert loading_peak_bytes(model, precision("bf16")) == whole - 2 * (32 * 64 + 64) + 4 * 64 * 64


def test_as_few_layers_as_will_do_stay_on_the_disk(tmp_path: Path) -> None:
    model = _model(tmp_path, intermediate_size=64 * 1024)
    sizes = list(layer_bytes(model, precision("fp32")).values())
    whole = _plan(model, ram=4096 * MIB, context=32)
    smallest = _plan(model, ram=whole.ram.total_bytes - 2 * sizes[0], context=32)
    assert smallest.fits
    streamed = smallest.config.streamed_layers
    assert streamed == [f"model.layers.{index}" for index in (2, 4, 6, 8, 10)]
    assert smallest.streamed_bytes == sum(sizes[-len(streamed) :])
    # Two of them lie in the ring at once, each with a page more for each of its nine parameters.
    matrices = (64 * 64, 64 * 64, 32 * 64, 32 * 64, *[64 * 64 * 1024] * 3)
    pages = sum(4 * one // 4096 for one in matrices) + 2  # a norm has one
    assert smallest.config.ring_bytes == 2 * 4096 * (pages + 9)
    fewer = _plan(model, ram=smallest.ram.needs_bytes + sizes[0], context=32)
    assert len(fewer.config.device_map) == len(smallest.config.device_map)
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
    one = TransformersConfig(
        folder=Path("/folder"),
        paths=(Path("/folder/model.safetensors"),),
        load_in="nf4",
        double_quant=True,
        context=4096,
        ubatch=512,
        threads=2,
        device_map=(("model.layers.0", "cpu"), ("model.layers.1", "disk")),
    )
    assert TransformersConfig.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.precision == precision("nf4-dq")
    assert replace(one, double_quant=False).precision == precision("nf4")


# -- GPUs ------------------------------------------------------------------------------------------


def _with_gpus(*limits: int, faster: float = 10.0) -> Runtime:
    """GPUs on which running takes 50 MiB, and all else is so much faster."""
    gpus = tuple(
        GpuRuntime(number=number, budget_bytes=limit, limit_bytes=limit, process_bytes=50 * MIB)
        for number, limit in enumerate(limits)
    )
    return replace(
        _RUNTIME,
        gpus=gpus,
        packs_4bit=False,
        elements_per_second={"fp32": 1e9 * faster, "bf16": 2e9 * faster, "nf4": 2e9 * faster},
        operations_per_second={"fp32": 1e11 * faster, "bf16": 2e11 * faster, "nf4": 1e11 * faster},
        link_bytes_per_second=1e10,
    )


def test_layers_on_two_gpus_counted_by_hand() -> None:
    costs = LayerCosts(layers=[10] * 8, kv=[1] * 8, shared=5, passes=2, loading=0, brought=3)
    assert counts_on_gpus(costs, [95]) == [8]  # 7 + 8 x 11
    assert counts_on_gpus(costs, [94]) == [7]  # 7 + 7 x 11 + the last one's KV cache and its ring
    assert counts_on_gpus(costs, [87]) == [6]  # 7 + 6 x 11 + 2 x 1 + 3 is 78; with 7 it is 88
    assert counts_on_gpus(costs, [40, 58]) == [3, 5]
    assert counts_on_gpus(costs, [40, 35]) == [2, 3]
    assert counts_on_gpus(costs, [0]) == [0]


def test_a_device_map_names_every_module_once(tmp_path: Path) -> None:
    model = _model(tmp_path)
    layers = list(layer_bytes(model, precision("bf16")))
    assert device_map(model, layers, [("gpu0", 11), ("cpu", 0), ("disk", 0)]) == (("", "gpu0"),)
    assert device_map(model, layers, [("cpu", 11), ("disk", 0)]) == (("", "cpu"),)
    places = dict(device_map(model, layers, [("gpu0", 4), ("gpu3", 3), ("cpu", 3), ("disk", 1)]))
    assert [places[name] for name in layers] == ["gpu0"] * 4 + ["gpu3"] * 3 + ["cpu"] * 3 + ["disk"]
    assert places["model.embed_tokens"] == places["model.norm"] == places["lm_head"] == "gpu0"
    for one in model.parameters:
        assert device_of(one.name, places) in ("gpu0", "gpu3", "cpu", "disk")
    assert not any(a != b and a.startswith(f"{b}.") for a in places for b in places)


def test_all_of_it_on_a_gpu_that_holds_it(tmp_path: Path) -> None:
    model = _model(tmp_path)
    plan = _plan(model, ram=200 * MIB, load_in="nf4", runtimes=[_with_gpus(200 * MIB), _RUNTIME])
    vram, ram = plan.tiers
    assert plan.fits and dict(plan.config.device_map) == {"": "gpu0"}
    assert (vram.name, vram.weights_bytes) == ("gpu0", plan.row.resident_bytes)
    assert (ram.weights_bytes, ram.kv_cache_bytes) == (0, 0)
    assert plan.config.gpus == (0,) and plan.config.gpu_limits == (150 * MIB,)


def test_what_a_gpu_does_not_hold_lies_in_ram_and_its_kv_cache_does_not(tmp_path: Path) -> None:
    model = _model(tmp_path, intermediate_size=64 * 1024)
    whole = sum(layer_bytes(model, precision("fp32")).values())
    short = [_with_gpus(50 * MIB + whole // 2 + 200 * MIB), _RUNTIME]
    plan = _plan(model, ram=1000 * MIB, runtimes=short)
    vram, ram = plan.tiers
    assert plan.fits and 0 < ram.weights_bytes < whole and plan.streamed_bytes == 0
    assert vram.weights_bytes + ram.weights_bytes == plan.row.resident_bytes
    assert ram.kv_cache_bytes == 0 and vram.kv_cache_bytes == 11 * 2 * 256 * 32 * 4
    assert vram.total_bytes + 48 * MIB + vram.kv_cache_bytes > vram.limit_bytes - 2 * whole // 11
    assert any("sent to gpu0 for every pass" in why for why in plan.why)
    less = _plan(model, ram=200 * MIB, runtimes=short)
    assert less.fits and less.streamed_bytes > 0 and less.tiers[0].total_bytes <= less.tiers[0].limit_bytes


def test_a_gpu_that_is_no_faster_or_too_small_is_not_used(tmp_path: Path) -> None:
    model = _model(tmp_path)
    slow = _plan(model, ram=200 * MIB, runtimes=[_with_gpus(200 * MIB, faster=0.1), _RUNTIME])
    assert slow.config.gpus == () and slow.fits
    small = _plan(model, ram=200 * MIB, load_in="fp32", runtimes=[_with_gpus(51 * MIB), _RUNTIME])
    assert small.config.gpus == () and small.fits


def test_a_quantized_model_is_not_split_between_a_gpu_and_ram(tmp_path: Path) -> None:
    model = _model(tmp_path, intermediate_size=64 * 1024)
    runtime = replace(_with_gpus(100 * MIB), operations_per_second={"nf4": 1e12, "bf16": 1e12})
    plan = _plan(model, ram=4000 * MIB, load_in="nf4", runtimes=[runtime])
    assert not plan.fits and set(dict(plan.config.device_map).values()) == {"gpu0"}


@pytest.mark.parametrize(
    ("workload", "option"),
    [
        ({"parallel": 9, "context": 8}, "--parallel"),
        ({"kv_type": "q8_0"}, "--kv-type"),
        ({"repack": "on"}, "--repack"),
    ],
)
def test_what_this_engine_does_not_do_is_refused(
    workload: dict[str, Any], option: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=option):
        _plan(_model(tmp_path), ram=500 * MIB, **workload)


def test_a_token_is_priced_with_the_experts_it_is_routed_to(tmp_path: Path) -> None:
    """As Qwen1.5-MoE-A2.7B, 60 experts of which 4 are used, and a shared one; counted by hand.

    Per layer: attention 4 x 8 x 8, the shared expert 3 x 16 x 8 and its gate 8, and 4 experts of 3 x 4 x 8.
    The router is not priced, nor the embedding, of which one row is read; the head is.
    """
    stored: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (10, 8), "lm_head.weight": (10, 8)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        stored |= {f"{prefix}self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
        stored |= {f"{prefix}mlp.gate.weight": (60, 8), f"{prefix}mlp.shared_expert_gate.weight": (1, 8)}
        for part, inner in [("shared_expert", 16), *((f"experts.{number}", 4) for number in range(60))]:
            stored |= {f"{prefix}mlp.{part}.{name}_proj.weight": (inner, 8) for name in ("gate", "up")}
            stored[f"{prefix}mlp.{part}.down_proj.weight"] = (8, inner)
    weights = read_checkpoint(write_checkpoint(tmp_path / "model.safetensors", stored))
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 4}
    config = {"model_type": "qwen2_moe", "torch_dtype": "bfloat16", "vocab_size": 10, **sizes, **experts}
    (tmp_path / "config.json").write_text(json.dumps(config))
    hf_config = read_config(tmp_path / "config.json")
    model = model_from_checkpoint(hf_config, weights)
    spec = spec_of_checkpoint("folder", hf_config, weights, model)
    active = 2 * (4 * 64 + 3 * 16 * 8 + 8 + 4 * 3 * 4 * 8) + 10 * 8
    runtime = replace(_RUNTIME, layer_seconds=0.0, elements_per_second={"bf16": 1e6})
    plan = _plan(model, spec=spec, ram=200 * MIB, load_in="bf16", runtimes=[runtime])
    assert plan.prediction.generation.value == pytest.approx(1e6 / active)


def test_python_runs_ahead_of_a_gpu_and_not_of_a_cpu(tmp_path: Path) -> None:
    """11 layers of 10 ms each, and next to nothing to compute."""
    model = _model(tmp_path)
    slow = replace(_RUNTIME, layer_seconds=0.01, elements_per_second={"fp32": 1e6}, basis="profile")
    matrices = (11 * (_LAYER - 2 * 64) + 1000 * 64) / 1e6
    assert _plan(model, ram=200 * MIB, runtimes=[slow]).prediction.generation.value == pytest.approx(
        1 / (0.11 + matrices)
    )
    gpu = replace(slow, gpus=_with_gpus(200 * MIB).gpus, link_bytes_per_second=1e9)
    on_gpu = _plan(model, ram=200 * MIB, runtimes=[gpu]).prediction
    assert on_gpu.generation.value == pytest.approx(1 / max(0.11, matrices))
    assert on_gpu.generation.low < on_gpu.generation.value < on_gpu.generation.high


def test_a_gpu_without_bf16_is_said(tmp_path: Path) -> None:
    runtime = _with_gpus(300 * MIB)
    old = replace(runtime, gpus=(replace(runtime.gpus[0], emulates_bf16=True),))

    def said(model: HfModel, load_in: str, runtime: Runtime) -> str:
        return " ".join(_plan(model, ram=300 * MIB, load_in=load_in, runtimes=[runtime]).why)

    llama = _model(tmp_path)
    assert "gpu0 has no bf16 arithmetic" in said(llama, "bf16", old)
    assert "gpu0 has no bf16 arithmetic" in said(llama, "nf4", old)
    assert "see --load-in fp16" in said(llama, "bf16", old)
    for load_in, one in (("fp16", old), ("fp32", old), ("bf16", runtime)):
        assert "arithmetic" not in said(llama, load_in, one)


def test_fp16_that_does_not_hold_a_familys_activations_is_said_by_name(tmp_path: Path) -> None:
    gemma = _model(tmp_path, model_type="gemma3_text", head_dim=32, sliding_window=512)
    words = "activations of gemma3_text models go beyond"
    for load_in, is_said in (("fp16", True), ("bf16", False), ("nf4", False), ("fp32", False)):
        runtime = replace(_RUNTIME, packs_4bit=False)
        plan = _plan(gemma, ram=400 * MIB, load_in=load_in, runtimes=[runtime])
        assert any(words in one for one in plan.why) == is_said
    llama = _plan(_model(tmp_path), ram=400 * MIB, load_in="fp16")
    assert not any("65,504" in one for one in llama.why)
