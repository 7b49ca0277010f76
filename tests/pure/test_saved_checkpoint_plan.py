"""Saved plans of checkpoints: whole when read back, refused where anything changed; nothing is loaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import make_machine, write_checkpoint

from memfit import saved_plan
from memfit.engines.fingerprinting import take_fingerprint
from memfit.engines.transformers import checkpoint_files
from memfit.errors import DoesNotFitError, MemfitError, UsageError
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import model_from_config
from memfit.hub.resolve import resolve
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.planner.request import Budget, Workload
from memfit.planner.transformers.planner import plan_checkpoint
from memfit.planner.transformers.runtime import Runtime
from memfit.planner.transformers.transformers_plan import TransformersPlan
from memfit.saved_plan import read_plan
from memfit.units import GIB, MIB

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_RUNTIME = Runtime(
    process_bytes=100 * MIB,
    loading_process_bytes=90 * MIB,
    starting_bytes=95 * MIB,
    packs_4bit=False,
    layer_seconds=1e-4,
    elements_per_second={"fp32": 1e9, "bf16": 2e9},
    operations_per_second={"fp32": 1e11, "bf16": 2e11},
    disk_bytes_per_second=(1e9, 1e9),
)


class _World:
    """A checkpoint, and a machine and libraries that can change."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "checkpoint"
        self.folder.mkdir()
        config = self.folder / "config.json"
        config.write_text(json.dumps(_CONFIG))
        parameters = model_from_config(read_config(config)).parameters
        write_checkpoint(self.folder / "model.safetensors", {one.name: one.shape for one in parameters})
        self.machine = make_machine(2 * GIB)
        self.versions = "2.13 5.24"
        monkeypatch.setattr(saved_plan, "probe", lambda: self.machine)
        monkeypatch.setattr(checkpoint_files, "engine_build", lambda: f"transformers of {self.versions}")
        monkeypatch.setattr(checkpoint_files, "require_libraries", lambda *_: None)

    def plan(self, *, load_in: str = "bf16") -> TransformersPlan:
        found = checkpoint_files.find_checkpoint_files(resolve(str(self.folder)), load_in, lambda _: None)
        config = TransformersConfig(
            folder=found.folder,
            paths=found.paths,
            load_in=load_in,
            double_quant=False,
            context=0,
            ubatch=0,
            threads=2,
        )
        workload, budget = Workload(context=256), Budget(ram=GIB)
        plan = plan_checkpoint(found.spec, found.model, config, self.machine, budget, workload, [_RUNTIME])
        fingerprint = take_fingerprint(
            found.spec,
            self.machine,
            engine=checkpoint_files.engine_build(),
            whole_files=found.whole_files,
            counts_parent=True,
        )
        return replace(plan, fingerprint=fingerprint)

    def save(self, document: Any = None) -> Path:
        path = self.folder.parent / "plan.json"
        path.write_text(json.dumps(document or self.plan().to_json()))
        return path


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _World:
    return _World(tmp_path, monkeypatch)


def _refusal(path: Path, model: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read_plan(path, model=model)
    return str(caught.value)


@pytest.mark.parametrize("load_in", ["fp32", "bf16", "int8", "nf4"])
def test_a_plan_is_equal_when_read_back(world: _World, load_in: str) -> None:
    plan = world.plan(load_in=load_in)
    assert read_plan(world.save(plan.to_json())) == plan


def test_the_model_may_lie_elsewhere_by_now(world: _World) -> None:
    path = world.save()
    moved = world.folder.rename(world.folder.with_name("moved"))
    with pytest.raises(MemfitError):
        read_plan(path)
    plan = read_plan(path, model=str(moved))
    assert isinstance(plan.config, TransformersConfig)
    assert plan.config.folder == moved
    assert {one.parent for one in plan.config.paths} == {moved}


def _other_libraries(world: _World) -> None:
    world.versions = "2.14 5.24"


def _edited_config(world: _World) -> None:
    path = world.folder / "config.json"
    path.write_text(path.read_text() + "\n")


def _edited_weights(world: _World) -> None:
    path = next(world.folder.glob("*.safetensors"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_libraries, "the engine's build from transformers of 2.13 5.24 to transformers of 2.14 5.24"),
        (_edited_config, "the model's file 2 of 2 from"),
        (_edited_weights, "the content of the model's file 1 of 2 from"),
    ],
)
def test_what_changed_is_said(world: _World, change: Callable[[_World], None], said: str) -> None:
    path = world.save()
    change(world)
    text = _refusal(path)
    assert said in text
    assert f"memfit plan {world.folder} --engine transformers --load-in bf16 --json" in text


def test_the_limit_shrinks_to_what_is_free(world: _World) -> None:
    path = world.save()
    world.machine = make_machine(600 * MIB)
    tier = read_plan(path).ram
    assert (tier.budget_bytes, tier.limit_bytes) == (GIB, 600 * MIB)
    world.machine = make_machine(64 * MIB)
    with pytest.raises(DoesNotFitError, match="new plan"):
        read_plan(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("engine", "vllm", "engine: got"),
        ("config.trust_remote_code", True, "config.trust_remote_code: got true"),
        ("config.load_in", "bf17", "config.load_in: got"),
        ("config.load_in", "fp32", "contradicts"),
        ("config.double_quant", True, "config.double_quant: got true"),
        ("config.device_map", [["", "gpu0"]], "config.gpus"),
        ("config.device_map", [["", "tpu"]], "config.device_map[0][1]"),
        ("config.paths", [], "config.paths"),
        ("config.threads", 0, "config.threads: got 0, needed a whole number from 1 to 512"),
        ("steady_bytes", -1, "steady_bytes: got -1"),
        ("precision.resident_bytes", 1, "precision contradicts"),
        ("extra", 1, "extra contradicts"),
        ("config.extra", 1, "config.extra is not a field"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(world: _World, field: str, value: object, said: str) -> None:
    assert said in _refusal(world.save(_changed(world.plan().to_json(), field.replace(".", "/"), value)))


@pytest.mark.parametrize("value", [None, -1, 1e300, "x", [], {}, True, 10**400], ids=lambda one: str(one)[:9])
def test_anything_anywhere_is_read_or_refused(world: _World, value: object) -> None:
    plan = world.plan()
    document = json.loads(json.dumps(plan.to_json()))
    for field in _leaves(document):
        path = world.save(_changed(document, field, value))
        try:
            found = read_plan(path)
        except MemfitError:
            continue
        assert found.config == plan.config, field


def _changed(document: dict[str, Any], field: str, value: object) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(json.loads(json.dumps(document)))
    *way, last = (int(key) if key.isdigit() else key for key in field.split("/"))
    place: Any = changed
    for key in way:
        place = place[key]
    place[last] = value
    return changed


def _leaves(value: Any, way: str = "") -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield f"{way}{key}"
        yield from _leaves(inner, f"{way}{key}/")
