"""The oracle's bytes: against counting by hand, and against what a real load then holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from memfit.engines.calibration import KeptAnswers
from memfit.engines.llamacpp import oracle
from memfit.engines.llamacpp.oracle import LlamaOracle
from memfit.engines.llamacpp.process import LlamaWorker
from memfit.errors import EngineError
from memfit.headers import read_model
from memfit.memory.estimate import LlamaConfig
from memfit.memory.process_memory import Baseline, process_memory
from memfit.planner.llamacpp.tensor_devices import devices_of
from memfit.units import MIB
from thorough import THOROUGH

pytestmark = pytest.mark.engine

_NOTHING = Baseline(parent=None, decode_bytes=0)


def _config(path: str, **changes: object) -> LlamaConfig:
    base = LlamaConfig(
        paths=(Path(path),),
        context=4096,
        parallel=1,
        kv_type="f16",
        ubatch=512,
        threads=2,
        repack=False,
        load_mode="mmap",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def _oracle(path: str, *repack_modes: bool) -> LlamaOracle:
    return LlamaOracle(read_model(path), _NOTHING, repack_modes=repack_modes or (False,))


def test_kv_cache_and_weights_by_hand(demo: str) -> None:
    """SmolLM2-135M: 30 layers, 3 KV heads of 64, keys and values."""
    elements = 30 * 3 * 64 * 2 * 4096
    with _oracle(demo) as oracle:
        f16 = oracle.ask(_config(demo))
        q8 = oracle.ask(_config(demo, kv_type="q8_0"))
        q4 = oracle.ask(_config(demo, kv_type="q4_0"))
    assert f16.kv_cache_bytes == elements * 2
    assert q8.kv_cache_bytes == elements // 32 * 34  # 32 values and a scale
    assert q4.kv_cache_bytes == elements // 32 * 18
    # Tensors are laid out with a padding of 32 bytes at most each.
    spec = read_model(demo)
    assert 0 <= f16.weights_bytes - spec.weights_bytes <= 32 * len(spec.tensors)


def test_sliding_window_is_not_counted_in_full(gemma: str) -> None:
    """Gemma-3-270M: 15 of 18 layers see 512 tokens; their caches do not grow with the context."""
    with _oracle(gemma) as oracle:
        short, long = (
            oracle.ask(_config(gemma, context=context)).kv_cache_bytes for context in (8192, 16384)
        )
    per_token_and_layer = 2 * 256 * 2  # one KV head of 256, f16
    assert long - short == 3 * per_token_and_layer * 8192


def test_what_it_answered_it_need_not_ask_again(
    demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [_config(demo, **one) for one in ({}, {"repack": True}, {"context": 512})]

    def answers(key: str) -> list[object]:
        kept = KeptAnswers(tmp_path, key)
        with LlamaOracle(read_model(demo), _NOTHING, repack_modes=(False, True), answers=kept) as asked:
            return [asked.ask(one) for one in configs]

    first = answers("build 1")
    with monkeypatch.context() as no_worker:
        no_worker.setattr(oracle, "LlamaWorker", None)
        assert answers("build 1") == first
    assert len(answers("build 2")) == 3  # another build is asked


def test_how_weights_are_read_is_asked_about_once(demo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with _oracle(demo) as asked, LlamaWorker() as worker:
        answers = [asked.ask(_config(demo, load_mode=mode)) for mode in ("mmap", "read", "own")]
        with monkeypatch.context() as no_worker:
            no_worker.setattr(asked, "_simulate", None)
            assert asked.ask(_config(demo, load_mode="own")) == answers[0]
        told = [
            worker.ask("simulate", config=_config(demo, load_mode=mode).to_json())
            for mode in ("mmap", "read", "own")
        ]
    assert answers[0] == answers[1] == answers[2]
    assert told[0]["bytes"] == told[1]["bytes"] == told[2]["bytes"]
    assert told[0]["prompt"] == told[1]["prompt"] == told[2]["prompt"]


def test_what_more_than_a_plain_worker_answers_is_not_kept(demo: str, tmp_path: Path) -> None:
    """numpy, which several sequences need, stays in the worker's memory."""
    kept = KeptAnswers(tmp_path, "build 1")
    with LlamaOracle(read_model(demo), _NOTHING, repack_modes=(False,), answers=kept) as asked:
        asked.ask(_config(demo, parallel=2))
        asked.ask(_config(demo))
    assert not list(tmp_path.iterdir())


_LOADS = [("demo", 512, False), ("demo", 4096, True), ("gemma", 512, True), ("gemma", 4096, False)]
_OTHER_LOADS = [("demo", 512, True), ("demo", 4096, False), ("gemma", 512, False), ("gemma", 4096, True)]


@pytest.mark.parametrize(("model", "context", "repack"), [*_LOADS, *(_OTHER_LOADS if THOROUGH else [])])
def test_a_real_load_holds_what_the_oracle_said(
    model: str, context: int, repack: bool, request: pytest.FixtureRequest
) -> None:
    """Buffers to the byte are the engine's own check; here the process as a whole."""
    path = request.getfixturevalue(model)
    config = _config(path, context=context, repack=repack, load_mode="read" if repack else "mmap")
    with _oracle(path, repack) as oracle:
        predicted = oracle.ask(config).total_bytes
    with LlamaWorker() as worker:
        tensors = [asdict(one) for one in read_model(path).tensors]
        worker.ask("load", config=config.to_json(), limit_bytes=None, more_bytes=0, tensors=tensors)
        held = process_memory(worker.pid).total_bytes
    assert abs(held - predicted) < 4 * MIB  # what is left is the part that calibration measures


def test_every_byte_lies_where_it_was_asked_to(demo: str) -> None:
    """Layers, single tensors and the output on two devices, and what each then computes."""
    spec = read_model(demo)
    overrides = ((r"^blk\.(20|21)\.(ffn_up|ffn_down)\.", 0), (r"^blk\.3\.ffn_gate\.", 2))
    config = _config(demo, devices=("one:1", "two:2"), layers=(8, 6), overrides=overrides, load_mode="read")
    with _oracle(demo) as oracle:
        alone, placed = oracle.ask(_config(demo)), oracle.ask(config)
    devices = devices_of(spec, config)
    for number, device in enumerate(placed.devices, start=1):
        here = sum(one.size_bytes for one in spec.tensors if devices[one.name] == number)
        assert 0 <= device.weights_bytes - here <= 32 * len(spec.tensors)
    assert [device.kv_cache_bytes for device in placed.devices] == [
        8 * alone.kv_cache_bytes // 30,
        6 * alone.kv_cache_bytes // 30,
    ]
    assert placed.layer_kv_bytes == alone.layer_kv_bytes == (alone.kv_cache_bytes // 30,) * 30
    # One token computes the same, wherever: matrices to the byte.
    for kind in ("matmul", "attention"):
        counted = [
            sum(one.bytes for one in answer.generation.operations if one.kind == kind)
            for answer in (alone, placed)
        ]
        assert counted[0] == counted[1]
    assert placed.generation.splits[1] == 1 + 2 and placed.generation.splits[2] == 1 + 1


@pytest.mark.parametrize("model", ["demo", "gemma"])
def test_what_a_device_with_more_threads_needs(model: str, request: pytest.FixtureRequest) -> None:
    """Its scratch is the engine's own figure for 2 threads, and no less than that for 3, 8 or 64."""
    path = request.getfixturevalue(model)
    with _oracle(path) as oracle:
        layers = len(oracle.ask(_config(path)).layer_kv_bytes)
        device = {"devices": ("one:1",), "layers": (layers,), "load_mode": "read"}
        (few,) = oracle.ask(_config(path, threads=2, **device)).devices
        for threads in (3, 8, 64):
            (more,) = oracle.ask(_config(path, threads=threads, **device)).devices
            assert more.thread_bytes == few.thread_bytes > 0
            assert few.scratch_bytes <= more.scratch_bytes
            assert more.scratch_bytes <= few.scratch_bytes + (threads - 2) * few.thread_bytes


def test_what_a_device_is_told_of_its_graph(demo: str) -> None:
    """A layer has 31 nodes, and 42 tensors with their sources. In the message a node takes 8 bytes and a
    tensor 296; each becomes a tensor of 368 there and an entry of 40; the graph takes 34 for a node."""
    few: dict[str, object] = {"devices": ("one:1",), "load_mode": "read", "ubatch": 1, "context": 256}
    with _oracle(demo) as oracle:
        five, ten, fifteen = (
            oracle.ask(_config(demo, layers=(layers,), **few)).devices[0].scratch_bytes
            for layers in (5, 10, 15)
        )
    by_hand = 5 * (31 * (8 + 368 + 40 + 34) + 42 * (296 + 368 + 40))
    assert ten - five == pytest.approx(by_hand, rel=0.05)
    assert fifteen - ten == pytest.approx(by_hand, rel=0.05)


def test_questions_do_not_add_up(demo: str) -> None:
    """The hundredth context is answered like the first."""
    with _oracle(demo) as oracle:
        first = oracle.ask(_config(demo, context=2048))
        for context in range(4096, 14096, 256):
            oracle.ask(_config(demo, context=context))
        oracle._answers.clear()
        again = oracle.ask(_config(demo, context=2048))
    assert again.kv_cache_bytes == first.kv_cache_bytes
    assert abs(again.process_bytes - first.process_bytes) < 4 * MIB


def test_a_refused_configuration_is_an_error_not_a_death(demo: str) -> None:
    with _oracle(demo) as oracle:
        with pytest.raises(EngineError, match="context"):
            oracle.ask(_config(demo, parallel=300))
        assert oracle.ask(_config(demo)).weights_bytes > 0


@pytest.mark.parametrize("model", ["demo", "gemma"])
def test_the_worker_without_a_vocabulary_says_the_same(model: str, request: pytest.FixtureRequest) -> None:
    """The second way of holding weights is asked of a worker that read no vocabulary."""
    path = request.getfixturevalue(model)
    with _oracle(path, False, True) as both, _oracle(path, True) as whole:
        second = both.ask(_config(path, repack=True))
        alone = whole.ask(_config(path, repack=True))
    assert abs(second.process_bytes - alone.process_bytes) < 4 * MIB
    assert replace(second, process_bytes=0) == replace(alone, process_bytes=0)
