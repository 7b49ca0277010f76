"""Checkpoints in transformers: held against transformers itself, within budgets, and with bad files."""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memfit import Budget, Sampling, Session, Workload, load, plan
from memfit.cli.render import console, print_report
from memfit.engines.requests import Request, RequestResult
from memfit.errors import DoesNotFitError, EngineError, ModelError, UsageError
from memfit.planner.transformers.transformers_plan import TransformersPlan
from memfit.saved_plan import read_plan
from memfit.units import MIB

pytestmark = pytest.mark.engine

_GREEDY = Sampling(temperature=0, max_tokens=12)
_WORKLOAD = Workload(context=512, threads=2)
_PROMPT = "The quick brown fox jumps over the lazy dog, and then it"


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    for path in llama.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def resident(llama: Path) -> Iterator[Session]:
    """All of it in RAM, for the tests that leave it as it was."""
    with load(plan(str(llama), workload=_WORKLOAD)) as session:
        yield session


def _plain_text(folder: Path, load_in: str, double_quant: bool) -> str:
    """What a script that calls from_pretrained and generate says."""
    transformers, torch = importlib.import_module("transformers"), importlib.import_module("torch")
    plain = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    settings: dict[str, Any] = {}
    if load_in == "int8":
        settings["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    elif load_in not in plain:
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=load_in,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=plain.get(load_in, torch.bfloat16), device_map="cpu", **settings
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(_PROMPT, return_tensors="pt")
    found = model.generate(**inputs, max_new_tokens=_GREEDY.max_tokens, do_sample=False)
    text = tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(("load_in", "double_quant"), [("bf16", False), ("int8", False), ("nf4", True)])
def test_bytes_are_those_planned_and_texts_those_of_a_plain_script(
    llama: Path, load_in: str, double_quant: bool
) -> None:
    settings = {"load_in": load_in, "double_quant": double_quant, "workload": _WORKLOAD}
    needs = plan(str(llama), **settings).ram.total_bytes
    planned = plan(str(llama), budget=Budget(ram=needs + 4 * MIB), **settings)
    with load(planned) as session:
        text = session.generate(_PROMPT, _GREEDY).text
        session.generate(_PROMPT * 24, _GREEDY)  # passes of a whole ubatch
        report = session.report()
    assert isinstance(planned, TransformersPlan) and report.model is not None
    assert report.within_budget
    assert abs(report.model.steady_predicted_bytes - report.model.steady_bytes) <= 16 * MIB
    held = sum(report.model.by_dtype.values())
    assert held == pytest.approx(planned.ram.weights_bytes, rel=0.01)
    assert report.model.tensors.keys() == report.model.by_dtype.keys()
    assert (held > report.model.reported_bytes) == planned.config.precision.is_quantized
    shown = io.StringIO()
    print_report(report, console(file=shown))
    said = f"get_memory_footprint() says {report.model.reported_bytes:,}"
    assert f"{held:,} bytes in memory; {said}" in shown.getvalue()
    assert ("quantization state" in shown.getvalue()) == planned.config.precision.is_quantized
    assert report.model.loaded_bytes == planned.row.resident_bytes
    assert report.model.loading_bytes <= planned.loading_bytes * 1.05
    assert text == _plain_text(llama, load_in, double_quant)


def _short_plan(folder: Path, **settings: Any) -> TransformersPlan:
    """With some layers on the disk."""
    whole = plan(str(folder), workload=_WORKLOAD, **settings)
    assert isinstance(whole, TransformersPlan)
    layer = whole.row.unquantized_bytes // 8
    for layers in range(1, 8):
        short = Budget(ram=whole.ram.total_bytes - layers * layer // 2)
        planned = plan(str(folder), workload=_WORKLOAD, budget=short, **settings)
        if planned.streamed_bytes:
            break
    assert planned.fits and isinstance(planned, TransformersPlan) and planned.streamed_bytes
    return planned


@pytest.mark.parametrize("load_in", ["fp32", "bf16"])
def test_layers_stay_on_the_disk_where_ram_is_short(llama: Path, load_in: str) -> None:
    planned = _short_plan(llama, load_in=load_in)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memfit"
    with load(planned) as session:
        (folder,) = cache.glob(f"offload-{os.getpid()}-*")
        # The checkpoint has them in float32 already.
        written = sum(one.stat().st_size for one in folder.iterdir())
        pages = 4096 * len(planned.config.streamed_layers)
        assert planned.written_bytes <= written <= planned.written_bytes + pages
        assert bool(written) == (load_in == "bf16")
        texts = [session.generate(_PROMPT, _GREEDY).text for _ in range(2)]
        report = session.report()
        assert report.within_budget and report.model is not None
        assert abs(report.model.steady_predicted_bytes - report.model.steady_bytes) <= 16 * MIB
    assert not list(cache.glob(f"offload-{os.getpid()}-*"))
    with load(plan(str(llama), workload=_WORKLOAD, load_in=load_in)) as session:
        assert texts == [session.generate(_PROMPT, _GREEDY).text] * 2
    refused = plan(
        str(llama),
        workload=_WORKLOAD,
        load_in=load_in,
        budget=Budget(ram=planned.ram.limit_bytes, disk=False),
    )
    with pytest.raises(DoesNotFitError, match="--load-in"):
        refused.require_fit()


def test_a_cancelled_pass_and_a_file_that_shrinks_while_layers_stream(copied: Path) -> None:
    with load(_short_plan(copied)) as session:
        text = session.generate(_PROMPT, _GREEDY).text
        for _ in range(3):
            threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            assert session.generate(_PROMPT * 20, Sampling(temperature=0)).finish_reason == "cancelled"
            assert session.generate(_PROMPT, _GREEDY).text == text
        for path in copied.glob("*.safetensors"):
            os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(EngineError, match=r"was changed|became shorter"):
            session.generate("Another one", _GREEDY)


def test_experts_that_transformers_merges_are_read_from_where_it_saves_them(tmp_path: Path) -> None:
    transformers, torch = importlib.import_module("transformers"), importlib.import_module("torch")
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=512,
        num_experts=8,
        num_experts_per_tok=2,
        num_hidden_layers=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=512,
        max_position_embeddings=512,
    )
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)

    def scores(planned: TransformersPlan) -> list[float]:
        with load(planned) as session:
            found = session.score(list(range(40)))
            assert session.report().within_budget
            return [one.logprob for one in found]

    workload = replace(_WORKLOAD, outputs=16)
    whole = plan(str(tmp_path), workload=workload)
    short = plan(str(tmp_path), workload=workload, budget=Budget(ram=whole.ram.total_bytes - 20 * MIB))
    assert isinstance(short, TransformersPlan) and isinstance(whole, TransformersPlan)
    assert 0 < short.written_bytes == short.streamed_bytes
    # Sums are taken in another order where memory is aligned otherwise.
    assert scores(short) == pytest.approx(scores(whole), abs=1e-4)


def test_a_conversation_streams_stops_and_is_not_computed_twice(resident: Session) -> None:
    messages = [{"role": "user", "content": "Count to three."}]
    assert resident.has_chat_template
    whole = resident.chat(messages, _GREEDY)
    assert "".join(resident.stream(messages, _GREEDY)) == whole.text
    again = resident.chat(messages, _GREEDY)
    assert again.text == whole.text and again.speed.prompt_tokens < whole.speed.prompt_tokens
    stop = whole.text[4:8]
    stopped = resident.chat(messages, Sampling(temperature=0, max_tokens=12, stop=(stop,)))
    assert stopped.finish_reason == "stop" and stopped.text == whole.text[: whole.text.index(stop)]
    seeded = Sampling(temperature=2.0, max_tokens=12, seed=7)
    assert resident.chat(messages, seeded).text == resident.chat(messages, seeded).text
    with pytest.raises(UsageError, match="try --ctx"):
        resident.generate("word " * 600, _GREEDY)
    assert resident.chat(messages, _GREEDY).text == whole.text


def test_ctrl_c_ends_an_answer_and_leaves_the_session(resident: Session) -> None:
    heard: list[str] = []

    def hear(text: str) -> None:
        if not heard:
            os.kill(os.getpid(), signal.SIGINT)
        heard.append(text)

    found = resident.generate(_PROMPT, Sampling(temperature=0), hear)
    assert found.finish_reason == "cancelled" and found.completion_tokens < 400
    assert resident.generate(_PROMPT, _GREEDY).finish_reason == "length"


def test_a_worker_that_is_killed_is_an_error_and_its_folder_goes(llama: Path) -> None:
    with load(plan(str(llama), workload=_WORKLOAD)) as session:
        threading.Timer(0.5, lambda: os.kill(session.worker_pid, signal.SIGKILL)).start()
        with pytest.raises(EngineError, match="killed"):
            for _ in range(1000):
                session.generate(_PROMPT, Sampling(temperature=0))
                time.sleep(0.01)


def test_too_small_a_budget_says_what_would_do(llama: Path) -> None:
    code, document = _plan_on_the_command_line(llama, "100MiB")
    assert code == 3 and not document["fits"] and document["engine"] == "transformers"
    code, document = _plan_on_the_command_line(llama, document["try"][-1].removeprefix("--ram "))
    assert code == 0 and document["fits"]


def _plan_on_the_command_line(folder: Path, ram: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "memfit", "plan", str(folder), "--load-in", "bf16", "--ram", ram]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


def _drop_a_shard(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def _cut_a_shard(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])


def _name_an_absent_tensor(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))


def _say_more_layers(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 5}))


def _say_another_width(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 640}))


def _leave_pickles(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_drop_a_shard, "is missing"),
        (_cut_a_shard, "truncated"),
        (_name_an_absent_tensor, "does not hold this tensor"),
        (_say_more_layers, "lack"),
        (_say_another_width, "lack"),
        (_leave_pickles, "pickle"),
    ],
)
def test_damaged_checkpoints_are_refused_before_loading(
    copied: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=says):
        plan(str(copied), workload=_WORKLOAD)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"double_quant": True, "load_in": "bf16"}, "--double-quant goes with"),
        ({"load_in": "int4"}, "must be one of"),
        ({"workload": Workload(parallel=4, context=3)}, "--parallel"),
        ({"workload": Workload(kv_type="q8_0")}, "--kv-type"),
        ({"engine": "vllm"}, "--engine"),
    ],
)
def test_settings_that_make_no_sense(llama: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(str(llama), **settings)


def test_precisions_are_for_checkpoints() -> None:
    with pytest.raises(UsageError, match="--engine transformers"):
        plan("demo", load_in="nf4")
    with pytest.raises(UsageError, match="for transformers"):
        plan("demo", engine="llamacpp", load_in="nf4")


def test_a_programs_own_code_runs_only_where_it_is_asked_for(copied: Path, tmp_path: Path) -> None:
    path, proof = copied / "config.json", tmp_path / "ran"
    values = json.loads(path.read_text())
    values |= {"model_type": "stranger", "auto_map": {"AutoConfig": "strange.StrangeConfig"}}
    path.write_text(json.dumps(values))
    (copied / "strange.py").write_text(f"open({str(proof)!r}, 'w')\n")
    with pytest.raises(EngineError, match=r"trust.remote.code"):
        plan(str(copied), workload=_WORKLOAD)
    assert not proof.exists()


def test_without_a_tokenizer_there_are_no_texts(copied: Path) -> None:
    for path in (*copied.glob("tokenizer*"), *copied.glob("chat_template*")):
        path.unlink()
    with load(plan(str(copied), workload=_WORKLOAD)) as session:
        assert session.measure(8, 4).generation_tokens_per_second
        with pytest.raises(UsageError, match="no tokenizer"):
            session.generate(_PROMPT, _GREEDY)


def test_a_planned_cache_is_upstreams_own_beyond_a_sliding_window() -> None:
    transformers, torch = importlib.import_module("transformers"), importlib.import_module("torch")
    cache_utils = importlib.import_module("transformers.cache_utils")
    kv_cache = importlib.import_module("memfit.engines.transformers.kv_cache")
    planned_cache, with_cache = kv_cache.planned_cache, kv_cache.with_cache
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=100,
        sliding_window=16,
    )
    model = transformers.Gemma3ForCausalLM(config).eval()
    theirs = cache_utils.DynamicCache(config=config)
    ours = planned_cache(config, context=128, ubatch=8)
    tokens = torch.randint(0, 100, (1, 90))
    with torch.no_grad():
        for _ in range(2):  # the second time in memory that has been used
            at = 0
            for count in (8, 8, 8, 3, *[1] * 30, 8, 8, *[1] * 17):
                piece = tokens[:, at : at + count]
                found = [model(piece, **with_cache(model, cache)).logits for cache in (theirs, ours)]
                assert torch.equal(*found)
                at += count
            assert at == 90
            theirs = cache_utils.DynamicCache(config=config)
            ours.reset()


def test_sequences_in_one_pass_are_each_computed_as_alone() -> None:
    """Sharing passes at random, joining at a shared beginning, and beyond a sliding window."""
    transformers, torch = importlib.import_module("transformers"), importlib.import_module("torch")
    sequences = importlib.import_module("memfit.engines.transformers.sequences").Sequences
    with_cache = importlib.import_module("memfit.engines.transformers.kv_cache").with_cache
    dynamic_cache = importlib.import_module("transformers.cache_utils").DynamicCache
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 6, "vocab_size": 100}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    for kind, more in (
        ("Gemma3Text", {"sliding_window": 16}),
        ("Llama", {}),
        ("Mistral", {"sliding_window": 12}),
    ):
        config = getattr(transformers, f"{kind}Config")(**sizes, **more)
        model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()
        texts = [torch.randint(0, 100, (length,)).tolist() for length in (60, 41, 90)]
        with torch.no_grad():
            alone = [
                model(torch.tensor([text]), **with_cache(model, dynamic_cache(config=config))).logits[0]
                for text in texts
            ]
            ours = sequences(model, config, sequences=4, tokens=96, ubatch=24)
            for _ in range(2):  # the second time in memory that has been used
                _compute_at_random(model, ours, texts, alone)
                ours.share(0, 3, 59)
                ours.parts = [(3, 1)]
                last = {"input_ids": torch.tensor([texts[0][59:]]), "position_ids": torch.tensor([[59]])}
                found = model(**last, **with_cache(model, ours.cache)).logits[0]
                assert torch.allclose(found, alone[0][59:], atol=1e-5)
                assert ours.reaches(2, 89) and ours.reaches(2, 40) == (not more)
                assert ours.cut(2, 40) == (not more)
                ours.cache.reset()


def _compute_at_random(model: Any, ours: Any, texts: list[list[int]], alone: list[Any]) -> None:
    torch = importlib.import_module("torch")
    with_cache = importlib.import_module("memfit.engines.transformers.kv_cache").with_cache
    choice, done = random.Random(1), [0, 0, 0]
    while done != [len(text) for text in texts]:
        counts = [choice.choice((0, 1, 1, 5, 8)) for _ in texts]
        counts = [min(count, len(text) - at) for count, text, at in zip(counts, texts, done, strict=True)]
        if not any(counts):
            continue
        ours.parts = [(index, count) for index, count in enumerate(counts) if count]
        ranges = [range(done[index], done[index] + count) for index, count in ours.parts]
        placed = [(index, at) for (index, _), one in zip(ours.parts, ranges, strict=True) for at in one]
        expected = [alone[index][at] for index, at in placed]
        found = model(
            input_ids=torch.tensor([[texts[index][at] for index, at in placed]]),
            position_ids=torch.tensor([[at for _, at in placed]]),
            **with_cache(model, ours.cache),
        ).logits[0]
        assert torch.allclose(found, torch.stack(expected), atol=1e-5)
        done = [at + count for at, count in zip(done, counts, strict=True)]


def test_requests_side_by_side_get_the_texts_that_they_get_alone(llama: Path, resident: Session) -> None:
    workload = replace(_WORKLOAD, context=1024, parallel=4, outputs=4)
    free = plan(str(llama), workload=workload)
    planned = plan(str(llama), workload=workload, budget=Budget(ram=free.ram.total_bytes + 4 * MIB))
    assert (planned.parallel, planned.sequence_context) == (4, 256)
    prompts = [f"{_PROMPT} {number} " * (1 + number % 3) for number in range(9)]
    with load(planned) as session:
        found = {}
        stream = session.open()
        for number, prompt in enumerate(prompts):
            stream.add(Request(number=number, prompt=prompt, sampling=_GREEDY))
        stream.add(Request(number=100, prompt="word " * 400, sampling=_GREEDY))
        stream.add(Request(number=101, prompt=_PROMPT, sampling=replace(_GREEDY, max_tokens=200)))
        stream.drop(101)
        stream.end()
        for event in stream.events():
            if isinstance(event, RequestResult):
                found[event.number] = event.completion.text if event.completion else str(event.error)
        assert "try --ctx" in found.pop(100)
        assert found == {
            number: resident.generate(prompt, _GREEDY).text for number, prompt in enumerate(prompts)
        }
        seeded = Sampling(temperature=1.5, max_tokens=12, seed=7, repeat_penalty=1.1)
        assert session.generate(_PROMPT, seeded).text == session.generate(_PROMPT, seeded).text
        scores = [one.logprob for one in session.score(range(1, 40), first=5)]
        assert session.measure(64, 4).generation_tokens_per_second
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        assert session.generate(_PROMPT, Sampling(temperature=0)).finish_reason in ("cancelled", "length")
        assert session.generate(prompts[0], _GREEDY).text == found[0]
        report = session.report()
    assert report.within_budget and report.model is not None
    assert abs(report.model.steady_predicted_bytes - report.model.steady_bytes) <= 16 * MIB
    with load(plan(str(llama), workload=replace(workload, parallel=1))) as session:
        alone = [one.logprob for one in session.score(range(1, 40), first=5)]
    assert scores == pytest.approx(alone, abs=1e-4)


def test_a_gguf_file_becomes_a_checkpoint_at_its_first_run(demo: str, tmp_path: Path) -> None:
    path = tmp_path / "copy.gguf"
    shutil.copyfile(demo, path)
    settings: dict[str, Any] = {"engine": "transformers", "load_in": "bf16", "workload": _WORKLOAD}
    planned = plan(str(path), **settings)
    place = planned.config.folder.parent
    try:
        assert planned.config.gguf == path and any("becomes a checkpoint" in why for why in planned.why)
        assert planned.spec.quantization == "Q4_1" and planned.ram.weights_bytes > 2 * 134e6
        small = plan(str(path), budget=Budget(ram=planned.loading_bytes - 50 * MIB), **settings)
        with pytest.raises(DoesNotFitError):
            load(small)
        exact = plan(str(path), budget=Budget(ram=planned.ram.total_bytes), **settings)
        with load(exact) as session:
            text = session.generate("The capital of France is", _GREEDY).text
            report = session.report()
        assert "Paris" in text and report.within_budget and report.model is not None
        assert report.model.loading_bytes == pytest.approx(planned.loading_bytes, rel=0.05)
        again = plan(str(path), **settings)
        assert again.config.gguf is None and again.loading_bytes < planned.loading_bytes
        assert sorted(one.name for one in place.iterdir()) == ["planned", "whole"]
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("load_in", ["bf16", "nf4"])
def test_a_saved_plan_runs_as_it_was_planned(copied: Path, tmp_path: Path, load_in: str) -> None:
    planned = plan(str(copied), workload=_WORKLOAD, load_in=load_in)
    assert isinstance(planned, TransformersPlan)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(planned.to_json()))
    again = read_plan(path)
    assert (again.config, again.fingerprint, again.spec) == (
        planned.config,
        planned.fingerprint,
        planned.spec,
    )
    assert isinstance(again, TransformersPlan) and again.row == planned.row
    with load(again) as session:
        assert session.generate(_PROMPT, _GREEDY).completion_tokens
        report = session.report()
    assert report.within_budget
    saved = json.loads(path.read_text())
    saved["config"]["trust_remote_code"] = True
    path.write_text(json.dumps(saved))
    with pytest.raises(UsageError, match="trust_remote_code"):
        read_plan(path)
    path.write_text(json.dumps(planned.to_json()))
    config = copied / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(UsageError, match=r"changed are: the model's file 3 of 5 from \d+ to"):
        read_plan(path)
