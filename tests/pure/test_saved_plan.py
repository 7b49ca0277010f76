"""Saved plans: whole when read back, refused where anything changed; no stranger's field is trusted."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf_files
import pytest
from fakes import (
    DeviceOracle,
    make_device,
    make_layered_spec,
    make_machine,
    make_plan_value,
    make_spec,
    make_speed,
    make_tensor,
    make_tier,
)

from memfit import saved_plan
from memfit.cli.main import main
from memfit.engines import fingerprinting
from memfit.engines.fingerprinting import take_fingerprint
from memfit.errors import DoesNotFitError, MemfitError, ModelNotFoundError, UsageError
from memfit.hardware.machine import Device, Gpu, Machine
from memfit.headers import read_model
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.request import Budget, Workload
from memfit.planner.saved import _PATTERN, plan_from_json, require_held
from memfit.planner.speed import AttentionSpeed, Term
from memfit.saved_plan import read_plan, require_this_machine
from memfit.units import GIB, MIB

_ENDPOINT = "127.0.0.1:50052"
_BLOCKS = r"^blk\.(0|1|17)\.(ffn_gate_exps|ffn_up_exps)\."
_OUTPUT = r"^(output|token_embd)"


class _World:
    """A model file, and a machine that can change."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.model = gguf_files.tiny_model().write(folder / "tiny.gguf")
        self.machine = make_machine(2 * GIB)
        self.engine_build = "1.2"
        self.lent_bytes = 800 * MIB
        self.free_bytes = 800 * MIB
        self.asked: list[Budget] = []
        monkeypatch.setattr(saved_plan, "probe", lambda: self.machine)
        monkeypatch.setattr(
            saved_plan, "LlamaCalibration", lambda **_: SimpleNamespace(engine_build=self.engine_build)
        )
        monkeypatch.setattr(saved_plan, "find_devices", self._find_devices)

    def _find_devices(self, machine: Machine, budget: Budget, _: object) -> list[Device]:
        self.asked.append(budget)
        wanted = [gpu for gpu in machine.gpus if budget.gpu_bytes(gpu)]
        gpus = [
            _device(f"gpu{gpu.index}", f"CUDA{gpu.index}", gpu.total_bytes, gpu.free_bytes) for gpu in wanted
        ]
        return gpus + [_device(name, name, self.lent_bytes, self.free_bytes) for name in budget.rpc]

    def plan(self, **changes: Any) -> LlamaPlan:
        spec = read_model(self.model)
        plan = make_plan_value(spec)
        plan = replace(
            plan,
            workload=Workload(context=4096, prompt_tokens=300, depth=7),
            prediction=replace(
                plan.prediction,
                prompt=replace(plan.prediction.prompt, value=201.23456789),
                generation_terms=(Term(device=0, kind="matmul Q8_0", seconds=1 / 3),),
            ),
        )
        plan = replace(plan, **changes)
        names = plan.config.devices
        devices = [_device(name, name, self.lent_bytes, self.free_bytes) for name in names if ":" in name]
        return replace(plan, fingerprint=self.fingerprint(plan, devices))

    def fingerprint(self, plan: LlamaPlan, devices: list[Device]) -> Any:
        engine = f"llamacpp {self.engine_build}"
        return take_fingerprint(plan.spec, self.machine, devices, engine=engine, counts_parent=True)

    def with_devices(self, *names: str, engine_names: tuple[str, ...] = ()) -> LlamaPlan:
        tiers = tuple(make_tier(50 * MIB, 8 * MIB, MIB, MIB, 700 * MIB, name=name) for name in names)
        base = make_plan_value(read_model(self.model))
        config = replace(
            base.config,
            devices=engine_names or names,
            layers=tuple(range(1, len(names) + 1)),
            overrides=((_BLOCKS, 0), (_OUTPUT, len(names))),
            load_mode="read",
        )
        return self.plan(config=config, tiers=(*base.tiers, *tiers))

    def write(self, document: object, name: str = "plan.json") -> str:
        path = self.folder / name
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        return str(path)

    def save(self, plan: LlamaPlan | None = None) -> str:
        return self.write((plan or self.plan()).to_json())


def _device(name: str, engine_name: str, total: int, free: int) -> Device:
    return Device(
        name=name,
        engine_name=engine_name,
        description="a device",
        total_bytes=total,
        free_bytes=free,
        overhead_bytes=0,
        is_memfit_server=":" in name,
    )


def _gpu(index: int = 0, *, name: str = "RTX 3060", free: int = 11 * GIB) -> Gpu:
    return Gpu(
        index=index,
        name=name,
        total_bytes=12 * GIB,
        used_bytes=12 * GIB - free,
        free_bytes=free,
        others_bytes=None,
        driver="550",
        cuda=None,
        compute_capability=None,
        link=None,
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _World:
    return _World(tmp_path, monkeypatch)


def _refusal(path: str, model: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read_plan(path, model=model)
    assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 2000
    return str(caught.value)


# --- whole when read back ---


def test_a_plan_is_equal_when_read_back(world: _World) -> None:
    plan = world.plan()
    assert read_plan(world.save(plan)) == plan


def test_a_plan_with_devices_is_equal_when_read_back(world: _World) -> None:
    world.machine = replace(world.machine, gpus=(_gpu(0), _gpu(1)))
    plan = world.with_devices("gpu1", _ENDPOINT, engine_names=("CUDA1", _ENDPOINT))
    assert read_plan(world.save(plan)) == plan
    assert world.asked == [Budget(vram={1: 700 * MIB}, rpc={_ENDPOINT: None})]


def test_what_a_worker_must_have_for_a_moment_is_read_back(world: _World) -> None:
    """More than what lies there in the end, 60 MiB; and it is held to what is free now."""
    plan = world.with_devices(_ENDPOINT)
    tiers = (plan.ram, replace(plan.tiers[1], reserved_bytes=90 * MIB))
    plan = replace(plan, tiers=tiers)
    path = world.save(plan)
    assert read_plan(path) == plan
    world.free_bytes = 90 * MIB - 1
    with pytest.raises(DoesNotFitError, match=_ENDPOINT) as caught:
        read_plan(path)
    assert (caught.value.needs_bytes, caught.value.budget_bytes) == (90 * MIB, 90 * MIB - 1)


def test_devices_that_the_plan_leaves_alone_are_not_asked(world: _World) -> None:
    base = world.plan()
    plan = replace(base, tiers=(*base.tiers, make_tier(0, 0, 0, 0, GIB, name=_ENDPOINT)))
    assert read_plan(world.save(plan)) == plan
    assert world.asked == []


def test_the_model_may_lie_elsewhere_by_now(world: _World) -> None:
    path = world.save()
    moved = world.model.rename(world.folder / "moved.gguf")
    with pytest.raises(ModelNotFoundError):
        read_plan(path)
    plan = read_plan(path, model=str(moved))
    assert plan.config.paths == plan.spec.paths == (moved,)


def test_another_working_directory_finds_the_model(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)
    spec = read_model("tiny.gguf")
    plan = world.plan()
    path = world.save(replace(plan, spec=spec, config=replace(plan.config, paths=spec.paths)))
    monkeypatch.chdir("/")
    assert read_plan(path).config.paths == (world.model,)


def test_nothing_in_a_plan_is_what_is_free(world: _World) -> None:
    plan = world.plan()
    world.machine = replace(world.machine, ram=replace(world.machine.ram, available_bytes=1_999_999_999))
    assert world.fingerprint(plan, []) == plan.fingerprint


# --- what changed ---


def _other_ram(world: _World) -> None:
    world.machine = replace(world.machine, ram=replace(world.machine.ram, total_bytes=32 * GIB))


def _other_cpu(world: _World) -> None:
    world.machine = replace(world.machine, cpu=replace(world.machine.cpu, model="Other CPU"))


def _other_cores(world: _World) -> None:
    world.machine = replace(world.machine, cpu=replace(world.machine.cpu, logical_cores=4))


def _new_gpu(world: _World) -> None:
    world.machine = replace(world.machine, gpus=(_gpu(),))


def _other_build(world: _World) -> None:
    world.engine_build = "3.4"


def _longer(world: _World) -> None:
    with world.model.open("ab") as file:
        file.write(bytes(32))


def _edited_header(world: _World) -> None:
    content = world.model.read_bytes()
    world.model.write_bytes(content.replace(b"Tiny", b"Tina"))


def _edited_last_byte(world: _World) -> None:
    world.model.write_bytes(world.model.read_bytes()[:-1] + b"\1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_ram, "RAM from 64.00 GiB to 32.00 GiB"),
        (_other_cpu, "the CPU from Toy CPU to Other CPU"),
        (_other_cores, "usable cores from 12 to 4"),
        (_new_gpu, "GPUs from none to RTX 3060 with 12.00 GiB"),
        (_other_build, "the engine's build from llamacpp 1.2 to llamacpp 3.4"),
        (_longer, "the model's file from"),
        (_edited_header, "the content of the model's file from"),
        (_edited_last_byte, "the content of the model's file from"),
    ],
)
def test_what_changed_is_said_with_the_command_that_makes_a_new_plan(
    world: _World, change: Callable[[_World], None], said: str
) -> None:
    path = world.save()
    change(world)
    text = _refusal(path)
    assert said in text
    assert f"memfit plan {world.model} --json" in text


def test_all_changes_are_said_at_once(world: _World) -> None:
    path = world.save()
    _other_ram(world)
    _other_cpu(world)
    text = _refusal(path)
    assert "the CPU from" in text and "RAM from" in text


def test_a_new_kernel_and_a_touched_file_change_nothing(world: _World) -> None:
    path = world.save()
    total = world.machine.ram.total_bytes - 5 * MIB
    world.machine = replace(world.machine, ram=replace(world.machine.ram, total_bytes=total))
    os.utime(world.model, (1, 1))
    read_plan(path)


def test_another_version_is_said_before_its_fields_are_judged(world: _World) -> None:
    document = world.plan().to_json()
    document["fingerprint"]["memfit"] = "0.0.9"
    document["new_in_that_version"] = 1
    text = _refusal(world.write(document))
    assert "made by memfit 0.0.9" in text and "memfit plan MODEL" in text


def test_a_remote_device_that_lends_something_else(world: _World) -> None:
    path = world.save(world.with_devices(_ENDPOINT))
    world.lent_bytes = 900 * MIB
    assert f"lend from {_ENDPOINT} with 800.00 MiB to {_ENDPOINT} with 900.00 MiB" in _refusal(path)


def test_a_model_given_beside_the_plan_must_be_the_same(world: _World) -> None:
    other = gguf_files.tiny_model(general__name=gguf_files.text("Else")).write(world.folder / "other.gguf")
    assert "the content of the model's file" in _refusal(world.save(), model=str(other))


def test_a_plan_for_another_machine_is_not_for_here(world: _World) -> None:
    plan = world.plan()
    assert plan.fingerprint is not None
    plan = replace(plan, fingerprint=replace(plan.fingerprint, profile="rtx3060-12gb"))
    assert "rtx3060-12gb" in _refusal(world.save(plan))
    with pytest.raises(UsageError, match="rtx3060-12gb"):
        require_this_machine(plan)


def test_a_plan_made_in_python_is_not_for_the_command_line(world: _World) -> None:
    plan = world.plan()
    assert plan.fingerprint is not None
    path = world.save(replace(plan, fingerprint=replace(plan.fingerprint, counts_parent=False)))
    read_plan(path)
    with pytest.raises(UsageError, match="made in Python"):
        read_plan(path, count_parent=True)


# --- the samples ---


def test_every_byte_of_a_small_file_is_in_the_fingerprint(world: _World) -> None:
    before = world.plan().fingerprint
    content = world.model.read_bytes()
    offset = read_model(world.model).data_offset_bytes[0]
    for position in range(offset, len(content), 97):
        world.model.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert world.plan().fingerprint != before


@pytest.mark.parametrize(
    ("size", "data_offset"), [(10_000, 0), (10_000, 9_990), (5_000, 5_000), (2**20, 4096), (2**36, 2**23)]
)
def test_the_samples_lie_in_the_file_begin_to_end(size: int, data_offset: int) -> None:
    ranges = list(fingerprinting._ranges(size, data_offset))
    header = [one for one in ranges if one[0] < data_offset]
    assert sum(length for _, length in header) == data_offset
    samples = ranges[len(header) :]
    assert len(samples) == 16
    assert samples[0][0] == data_offset
    last, length = samples[-1]
    assert last <= size <= last + length
    gaps = {after[0] - before[0] for before, after in pairwise(samples)}
    assert max(gaps) - min(gaps) <= 1


# --- what is free now ---


def test_too_little_free_ram_does_not_fit(world: _World) -> None:
    path = world.save()
    world.machine = make_machine(200 * MIB)
    with pytest.raises(DoesNotFitError, match="new plan") as caught:
        read_plan(path)
    assert (caught.value.needs_bytes, caught.value.budget_bytes) == (217 * MIB, 200 * MIB)


def test_the_limit_shrinks_to_what_is_free(world: _World) -> None:
    path = world.save()
    world.machine = make_machine(300 * MIB)
    tier = read_plan(path).ram
    assert (tier.budget_bytes, tier.limit_bytes) == (GIB, 300 * MIB)


def test_too_little_on_a_device_does_not_fit(world: _World) -> None:
    path = world.save(world.with_devices(_ENDPOINT))
    world.free_bytes = 59 * MIB
    with pytest.raises(DoesNotFitError, match=_ENDPOINT) as caught:
        read_plan(path)
    assert (caught.value.needs_bytes, caught.value.budget_bytes) == (60 * MIB, 59 * MIB)


def test_a_busy_gpu_does_not_fit(world: _World) -> None:
    world.machine = replace(world.machine, gpus=(_gpu(),))
    path = world.save(world.with_devices("gpu0", engine_names=("CUDA0",)))
    world.machine = replace(world.machine, gpus=(_gpu(free=50 * MIB),))
    with pytest.raises(DoesNotFitError, match="gpu0"):
        read_plan(path)


def test_a_plan_that_never_fitted(world: _World) -> None:
    tier = make_tier(100 * MIB, 64 * MIB, 31 * MIB, 22 * MIB, 100 * MIB)
    path = world.save(world.plan(tiers=(tier,), suggestions=("--ctx 256",)))
    with pytest.raises(DoesNotFitError, match="--ctx 256"):
        read_plan(path)


# --- files that are no plans, and plans by strangers ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"[]", "no saved plan"),
        (b"null", "no saved plan"),
        (b'{"model": {}}', "no saved plan"),
        (b'{"fingerprint": null, "config": {}}', "no saved plan"),
        (b'{"fingerprint": {"memfit": "0.1.0"}, "config": {}}', "model"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "nested"),
        (b" " * (MIB + 1), "larger than 1.00 MiB"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_plan(world: _World, content: bytes, said: str) -> None:
    assert said in _refusal(world.write(content))


def test_no_file_and_a_pipe(world: _World) -> None:
    assert "no such file" in _refusal(str(world.folder / "none.json"))
    os.mkfifo(world.folder / "pipe")
    assert "no plain file" in _refusal(str(world.folder / "pipe"))
    assert "a folder" in _refusal(str(world.folder))


_WRONG: list[tuple[str, object, str]] = [
    ("config.paths", ["/etc/passwd"], "paths"),
    ("config.paths", [], "paths"),
    ("config.paths", ["tiny.gguf"], "absolute"),
    ("config.overrides", [["(a+)+$", 0]], "config.overrides"),
    ("config.overrides", [[r"^blk\.(0|1)\.(ffn_up)\.", 9]], "overrides"),
    ("config.overrides", [[r"^blk\.(0|1)\.(ffn_up)\."]], "list of two"),
    ("config.overrides", [{"0": "a", "1": 0}], "list"),
    ("config.overrides", "^$", "list"),
    ("config.devices", ["CUDA0", _ENDPOINT], "layers"),
    ("config.devices", ["10.0.0.1:1"], "tiers"),
    ("config.devices", [], "layers"),
    ("config.layers", [-1], "layers"),
    ("config.layers", [True], "layers"),
    ("config.kv_type", "q4_1", "one of f16"),
    ("config.load_mode", "exec", "one of mmap"),
    ("config.repack", 0, "true or false"),
    ("config.dequantized", ["blk.0.attn_q.weight"], "dequantized"),  # not beside devices
    ("config.threads", 10**6, "threads"),
    ("config.threads", 2.0, "threads"),
    ("config.parallel", 0, "parallel"),
    ("config.ubatch", 2**31, "ubatch"),
    ("config.context", 2**31, "context"),
    ("context", "4096", "context"),
    ("context", 8192.5, "context"),
    ("model.source", "other.gguf", "source"),
    ("model.source", "a\x1b[2Jtiny.gguf", "source"),
    ("model", [], "model"),
    ("why", ["fine", "\x1b]0;bad\x07"], "why"),
    ("why", "because", "why"),
    ("tiers", [], "tiers"),
    ("tiers.0.weights_bytes", -1, "weights_bytes"),
    ("tiers.1.reserved_bytes", -1, "reserved_bytes"),
    ("tiers.1.reserved_bytes", 2**60 + 1, "reserved_bytes"),
    ("tiers.0.limit_bytes", GIB + 1, "limit_bytes"),
    ("tiers.0.kind", "disk", "kind"),
    ("tiers.1.name", "ram", "name"),
    ("tiers.1.name", "gpu 0; rm", "name"),
    ("tiers.1.name", "10.0.0.1:1", "tiers"),
    ("prediction.prompt.value", -1.0, "prompt.value"),
    ("prediction.prompt.value", 0, "prompt.value"),
    ("prediction.basis", "hoped", "basis"),
    ("prediction.generation_terms.0.seconds", -0.5, "seconds"),
    ("prediction.generation_terms.0.device", 9, "device"),
    ("workload.parallel", 257, "workload.parallel is 257; it must be between 1 and 256"),
    ("workload.context", "4096", "workload.context"),
    ("workload.kv_type", "f32", "workload.kv_type is 'f32'; it must be auto, f16"),
    ("fingerprint.counts_parent", None, "counts_parent"),
    ("fingerprint.files", [{"size_bytes": 1}], "sha256"),
    ("fingerprint.files", [], "number of files from 0 to 1"),
    ("fingerprint.memfit", 1, "no saved plan"),
    # What stands there twice must agree.
    ("kv_type", "q8_0", "kv_type contradicts"),
    ("fits", False, "fits contradicts"),
    ("threads", 1, "threads contradicts"),
    ("tiers.0.total_bytes", 1, "tiers contradicts"),
    ("predicted.basis", "assumed", "predicted contradicts"),
    ("streamed_bytes_per_pass", 1, "streamed_bytes_per_pass contradicts"),
]


@pytest.mark.parametrize(("field", "value", "said"), _WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_refused_by_its_name(world: _World, field: str, value: object, said: str) -> None:
    document = world.with_devices(_ENDPOINT).to_json()
    read_plan(world.write(document))  # right as it is
    assert said in _refusal(world.write(_changed(document, field, value)))


@pytest.mark.parametrize(
    ("mode", "repack", "names", "fine"),
    [
        ("own", False, ["token_embd.weight"], True),
        ("mmap", False, ["token_embd.weight"], False),
        ("own", True, ["token_embd.weight"], False),
        ("own", False, ["token_embd.weight", "output_norm.weight"], False),
        ("own", False, ["absent"], False),
    ],
)
def test_only_what_may_be_dequantized_is(
    world: _World, mode: str, repack: bool, names: list[str], fine: bool
) -> None:
    """The engine would read the bytes of another type, and beyond them."""
    plan = world.plan()
    config = replace(plan.config, load_mode=mode, repack=repack, dequantized=tuple(names))
    path = world.save(replace(plan, config=config))
    if fine:
        assert read_plan(path).config == config
    else:
        assert "dequantized" in _refusal(path)


@pytest.mark.parametrize(
    ("field", "mode", "repack"),
    [("twofold", "own", False), ("widened", "read", True), ("plain", "read", True)],
)
def test_only_matrices_are_held_in_other_forms(world: _World, field: str, mode: str, repack: bool) -> None:
    plan = world.plan()
    for name in ("absent", "output_norm.weight"):
        config = replace(plan.config, load_mode=mode, repack=repack, **{field: (name,)})
        assert f"config.{field}" in _refusal(world.save(replace(plan, config=config)))


def test_experts_may_stay_plain() -> None:
    """They are not rewritten where their own kernels are slower; no other form is theirs."""
    experts = make_tensor("blk.0.ffn_up_exps.weight", (256, 256, 4), "Q4_K", 4 * 144 * 256)
    plan = make_plan_value(make_spec(experts))
    config = replace(plan.config, load_mode="read", repack=True, devices=(), layers=(), plain=(experts.name,))
    require_held(replace(plan, config=config), "plan")
    with pytest.raises(UsageError, match=r"config\.widened"):
        require_held(replace(plan, config=replace(config, plain=(), widened=(experts.name,))), "plan")


def _changed(document: dict[str, Any], field: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(json.loads(json.dumps(document)))
    *way, last = (int(key) if key.isdigit() else key for key in field.split("."))
    place: Any = changed
    for key in way:
        place = place[key]
    place[last] = value
    return changed  # type: ignore[no-any-return]


def _leaves(value: Any, way: str = "") -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield f"{way}{key}"
        yield from _leaves(inner, f"{way}{key}.")


@pytest.mark.parametrize(
    "value", [None, -1, 1e300, "x", [], {}, [[]], True, 10**400], ids=lambda one: str(one)[:9]
)
def test_anything_anywhere_is_read_or_refused(world: _World, value: object) -> None:
    """Never another exception; what is read after all is equal but for what a plan does not hold to."""
    plan = world.with_devices(_ENDPOINT)
    document = json.loads(json.dumps(plan.to_json()))
    for field in _leaves(document):
        path = world.write(_changed(document, field, value))
        try:
            found = read_plan(path)
        except MemfitError:
            continue
        assert found.config == plan.config, field
        assert found.workload == plan.workload or field.startswith("workload."), field


@pytest.mark.parametrize("key", ["tiers", "config", "fingerprint", "workload", "prediction", "why", "model"])
def test_a_missing_field_is_named(world: _World, key: str) -> None:
    document = world.plan().to_json()
    del document[key]
    assert key in _refusal(world.write(document)) or key in ("config", "fingerprint")


@pytest.mark.parametrize(
    ("pattern", "ours"),
    [
        (_BLOCKS, True),
        (_OUTPUT, True),
        (rf"^blk\.({'|'.join(map(str, range(200)))})\.(ffn_down)\.", True),
        (r"^blk\.(0|)\.(ffn_up)\.", False),
        (r"^blk\.(0)+\.(ffn_up)\.", False),
        (r"^blk\.(0)\.(ffn_up)\.$", False),
        (r".*", False),
        ("", False),
    ],
)
def test_only_the_planners_patterns_reach_the_engine(pattern: str, ours: bool) -> None:
    assert bool(_PATTERN.fullmatch(pattern)) is ours


def test_the_planners_own_patterns_are_among_them() -> None:
    """Two blocks and the output away from their layers' home."""
    spec = make_layered_spec()
    attention = {"F16/64": AttentionSpeed(generation=1e6, prompt=1e6)}
    plan = make_plan(
        PlanInputs(
            spec=spec,
            machine=make_machine(2 * GIB),
            budget=Budget(rpc={_ENDPOINT: 90 * MIB}),
            workload=Workload(repack="off"),
            speeds={False: make_speed(attention=attention)},
            devices=[(make_device(_ENDPOINT), make_speed(1e11))],
        ),
        DeviceOracle(spec),
    )
    patterns = [pattern for pattern, _ in plan.config.overrides]
    assert len(patterns) >= 2
    assert all(map(_PATTERN.fullmatch, patterns)), patterns


def test_devices_that_are_not_there(world: _World) -> None:
    world.machine = replace(world.machine, gpus=(_gpu(),))
    plan = world.with_devices("gpu0", engine_names=("Vulkan0",))
    text = _refusal(world.save(plan))
    assert "needs gpu0 as Vulkan0, and there is gpu0 as CUDA0" in text
    text = _refusal(world.save(world.with_devices("gpu7", engine_names=("CUDA7",))))
    assert "there is none" in text


def test_parsing_is_pure(world: _World) -> None:
    """The document alone gives the plan, whatever the machine is like."""
    plan = world.plan()
    document = json.loads(json.dumps(plan.to_json()))
    world.machine = make_machine(1)
    assert plan_from_json(document, "here", plan.spec) == plan


# --- the command line ---


def _fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "bench"])
@pytest.mark.parametrize(
    "option",
    [
        *(("--ram", "1GiB"), ("--vram", "0=1GiB"), ("--rpc", _ENDPOINT), ("--no-disk",), ("--ctx", "512")),
        *(("--parallel", "1"), ("--kv-type", "auto"), ("--threads", "2"), ("--repack", "on")),
        *(("--prompt-tokens", "512"), ("--gen-tokens", "128"), ("--depth", "0")),
    ],
    ids=lambda option: option[0],
)
def test_budget_and_workload_beside_a_plan_are_refused_by_name(
    command: str, option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    text = _fails([command, "--plan", "p.json", *option], capsys)
    assert f"{option[0]} cannot be given beside --plan" in text


@pytest.mark.parametrize("option", ["--reranking", "--embeddings", "--no-kv-unified", "--parallel=2"])
def test_what_a_server_adds_to_them_too(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = option.replace("--no-", "--").partition("=")[0]
    assert f"{name} cannot be given beside --plan" in _fails(["serve", "--plan", "p.json", option], capsys)


def test_those_from_the_environment_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEMFIT_RAM", "1GiB")
    assert "MEMFIT_RAM cannot be given" in _fails(["run", "--plan", "p.json", "--ctx", "9"], capsys).replace(
        ", --ctx", ""
    )


def test_sampling_beside_a_plan_is_fine(world: _World, capsys: pytest.CaptureFixture[str]) -> None:
    text = _fails(["run", "--plan", "none.json", "-p", "x", "--seed", "1", "--top-k", "3"], capsys)
    assert "no such file" in text


@pytest.mark.parametrize("command", ["run", "bench"])
def test_neither_model_nor_plan(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "MODEL" in _fails([command], capsys)
