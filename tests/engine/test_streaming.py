"""Models of which a part stays on the disk: the resident run's text, the budget held, and rough weather."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import memfit
from conftest import children_of, rpc_server, run_memfit
from memfit.errors import EngineError
from memfit.hardware.cgroup import memory_group
from memfit.units import MIB
from thorough import times

pytestmark = pytest.mark.engine

_PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
)
_TOKENS = times(20, 64)
_GREEDY = memfit.Sampling(temperature=0, max_tokens=_TOKENS)
_SMALL = memfit.Workload(context=1024, repack="off")


def _plan(model: str, ram: str | None = None) -> memfit.Plan:
    return memfit.plan(model, budget=memfit.Budget(ram=ram), workload=_SMALL, count_parent=False)


@pytest.fixture(scope="module")
def resident(demo: str) -> tuple[memfit.Plan, list[str]]:
    plan = _plan(demo)
    with memfit.load(plan) as session:
        return plan, [session.generate(prompt, _GREEDY).text for prompt in _PROMPTS]


@pytest.mark.parametrize("share", [0.75, 0.65, 0.55])
def test_text_budget_and_reads(demo: str, resident: tuple[memfit.Plan, list[str]], share: float) -> None:
    whole, texts = resident
    budget = whole.ram.total_bytes - int((1 - share) * whole.ram.weights_bytes)
    plan = _plan(demo, str(budget))
    assert plan.fits and plan.config.load_mode == "own" and plan.streamed_bytes > 0
    assert plan.ram.weights_bytes + plan.streamed_bytes >= 0.98 * whole.ram.weights_bytes
    with memfit.load(plan) as session:
        assert [session.generate(prompt, _GREEDY).text for prompt in _PROMPTS] == texts
        report = session.report()
    (tier,) = report.tiers
    assert report.within_budget
    assert tier.error_bytes is not None and abs(tier.error_bytes) <= 16 * MIB
    passes = 3 * _TOKENS + 3  # tokens and prompts; what is read ahead of the next pass comes on top
    read = plan.ram.weights_bytes + passes * plan.streamed_bytes
    assert report.disk_read_bytes <= 1.1 * read


def test_a_prompt_is_one_pass(demo: str) -> None:
    plan = _plan(demo, "150MiB")
    with memfit.load(plan) as session:
        before = session.report().disk_read_bytes
        session.measure(512, 0)
        read = session.report().disk_read_bytes - before
    assert plan.config.ubatch == 512
    assert plan.streamed_bytes * 0.9 <= read <= 2 * plan.streamed_bytes


def test_no_disk_refuses(demo: str) -> None:
    asked = ("plan", demo, "--ram", "170MiB", "--ctx", "1024", "--repack", "off", "--json")
    streamed = run_memfit(*asked)
    assert streamed.code == 0
    assert streamed.json["load_mode"] == "own" and streamed.json["streamed_bytes_per_pass"] > 0
    assert streamed.json["tiers"][-1]["kind"] == "disk"
    refused = run_memfit(*asked, "--no-disk")
    assert refused.code == 3 and refused.json["fits"] is False
    shown = run_memfit("plan", demo, "--ram", "170MiB", "--ctx", "1024", "--repack", "off")
    assert "DISK" in shown.out and "for every pass" in shown.out


def test_a_saved_plan_streams_as_planned(demo: str, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    asked = (demo, "--ram", "170MiB", "--ctx", "1024", "--repack", "off")
    planned = run_memfit("plan", *asked, "--json")
    saved.write_text(planned.out)
    assert planned.json["streamed_bytes_per_pass"] > 0
    run = run_memfit(
        "run", "--plan", str(saved), "-p", _PROMPTS[0], "--raw", "--temperature", "0", "--max-tokens", "4"
    )
    assert run.code == 0, run.err
    assert "Paris" in run.out


@pytest.fixture
def copy(demo: str, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "copy.gguf"
    shutil.copy(demo, path)
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("harm", ["truncated", "rewritten"])
def test_a_file_that_changes_meanwhile_is_an_error(copy: Path, harm: str) -> None:
    def strike() -> None:
        time.sleep(0.7)
        if harm == "truncated":
            os.truncate(copy, 1 << 20)
        else:
            with copy.open("r+b") as file:
                file.write(b"GGUF")

    with memfit.load(_plan(str(copy), "150MiB")) as session:
        thread = threading.Thread(target=strike)
        thread.start()
        with pytest.raises(EngineError, match=r"changed|shorter"):
            while True:
                session.generate(_PROMPTS[1], memfit.Sampling(max_tokens=200))
        thread.join()
    assert children_of(os.getpid()) == []


@pytest.mark.parametrize("ram", ["170MiB", "400MiB"])  # streamed, and mapped
def test_a_file_that_becomes_shorter_ends_the_command_line(copy: Path, ram: str) -> None:
    options = ("--ram", ram, "--ctx", "1024", "--repack", "off", "--raw", "-p", _PROMPTS[1])
    with subprocess.Popen(
        [sys.executable, "-m", "memfit", "run", str(copy), *options, "--repeat-penalty", "1.3"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.read(1)
        os.truncate(copy, 1 << 20)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert "changed" in err or "shorter" in err
    assert "Traceback" not in err


def test_a_file_in_memory(demo: str, resident: tuple[memfit.Plan, list[str]]) -> None:
    """On tmpfs, whose files are page cache themselves: not memfit's, and not to be dropped."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        pytest.skip("there is no /dev/shm here")
    copy = folder / f"memfit-test-{os.getpid()}.gguf"
    try:
        shutil.copy(demo, copy)
        with memfit.load(_plan(str(copy), "150MiB")) as session:
            assert session.generate(_PROMPTS[0], _GREEDY).text == resident[1][0]
            (tier,) = session.report().tiers
    finally:
        copy.unlink(missing_ok=True)
    assert tier.within_budget
    assert tier.error_bytes is not None and abs(tier.error_bytes) <= 16 * MIB


def test_a_file_that_is_replaced_goes_on_as_it_was(
    copy: Path, resident: tuple[memfit.Plan, list[str]]
) -> None:
    with memfit.load(_plan(str(copy), "150MiB")) as session:
        other = copy.with_suffix(".new")
        other.write_bytes(b"nothing")
        other.rename(copy)
        assert session.generate(_PROMPTS[0], _GREEDY).text == resident[1][0]


def test_an_answer_that_is_left_early(demo: str, resident: tuple[memfit.Plan, list[str]]) -> None:
    """The pass ends in its middle; the next answer begins at the first tensor again."""
    with memfit.load(_plan(demo, "150MiB")) as session:
        for count in range(times(3, 5)):
            pieces = session.stream(_PROMPTS[1], memfit.Sampling(max_tokens=300))
            for _ in range(count + 1):
                next(pieces)
            pieces.close()
            assert session.generate(_PROMPTS[0], _GREEDY).text == resident[1][0]


@pytest.mark.parametrize("everyone", [False, True])  # as `kill` does; as a terminal does
def test_interrupts_at_random_moments(demo: str, tmp_path: Path, everyone: bool) -> None:
    """Starting, planning, loading or answering: it ends at once, and nothing is left over."""
    moments = random.Random(11 + everyone)
    group = memory_group()
    cap = ("--hard-cap",) * bool(group and group.version == 1 and os.access(group.folder, os.W_OK))
    options = ("--ram", "170MiB", "--ctx", "1024", "--repack", "off", "--raw", "-p", _PROMPTS[1], *cap)
    for _ in range(times(2, 6)):
        with subprocess.Popen(
            [sys.executable, "-m", "memfit", "run", demo, *options, "--repeat-penalty", "1.3"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        ) as process:
            time.sleep(moments.uniform(0.1, 4))
            interrupt = os.killpg if everyone else os.kill
            interrupt(process.pid, signal.SIGINT)
            try:
                _, err = process.communicate(timeout=30)
            finally:
                process.kill()
        # Python itself ends by the signal where it was met while a class was being made: 130 in a shell.
        assert process.returncode in (130, -signal.SIGINT), err
        assert "Traceback" not in err or process.returncode < 0
        assert _in_session(process.pid) == []
        assert list(tmp_path.iterdir()) == []
        assert group is None or list(group.folder.glob(f"memfit-{process.pid}-*")) == []


def _in_session(number: int) -> list[int]:
    """Living processes of a session, children of children too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session, *_ = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(session) == number and state != "Z":
                found.append(int(folder.name))
    return found


def test_experts_stream_whole(tmp_path: Path, benchmarks: None) -> None:
    synthetic, shapes = (importlib.import_module(name) for name in ("synthetic", "shapes"))
    path = tmp_path / "moe.gguf"
    synthetic.write_model(path, replace(shapes.MOE, layers=6), values="random")
    whole = _plan(str(path))
    plan = _plan(str(path), str(whole.ram.total_bytes - whole.ram.weights_bytes // 2))
    assert any("_exps" in name for name in plan.config.streamed)
    texts = []
    for one in (whole, plan):
        with memfit.load(one) as session:
            texts.append(session.generate(" w1 w20 w300", _GREEDY).text)
            assert session.report().within_budget
    assert texts[0] == texts[1]
    path.unlink()


def test_a_split_model(
    demo: str, tmp_path: Path, resident: tuple[memfit.Plan, list[str]], benchmarks: None
) -> None:
    """Streamed tensors lie in all of its files."""
    rewrite = importlib.import_module("rewrite").rewrite
    files = rewrite(demo, tmp_path / "model.gguf", split_bytes=40_000_000)
    assert len(files) == 3
    plan = _plan(str(files[1]), "150MiB")
    assert plan.spec.paths == tuple(files)
    streamed = {one.file_index for one in plan.spec.tensors if one.name in set(plan.config.streamed)}
    assert streamed == {0, 1, 2}
    with memfit.load(plan) as session:
        assert session.generate(_PROMPTS[0], _GREEDY).text == resident[1][0]
        assert session.report().within_budget
    for file in files:
        file.unlink()


def test_with_layers_on_a_device(demo: str, resident: tuple[memfit.Plan, list[str]]) -> None:
    """The device is sent its tensors by ourselves, too."""
    workload = replace(_SMALL, kv_type="f16", threads=1)
    with rpc_server("70MiB") as worker:
        budget = memfit.Budget(ram="130MiB", rpc={worker.endpoint: None})
        plan = memfit.plan(demo, budget=budget, workload=workload)
        assert plan.config.load_mode == "own" and plan.streamed_bytes > 0
        assert plan.config.layers[0] > 0
        with memfit.load(plan) as session:
            assert session.generate(_PROMPTS[0], _GREEDY).text == resident[1][0]
            report = session.report()
    assert report.within_budget
    for tier in report.tiers:
        assert tier.error_bytes is not None and abs(tier.error_bytes) <= 16 * MIB


_UNGIVEN = """
import json, sys
from memfit.engines.llamacpp.devices import Devices
from memfit.engines.llamacpp.library import load_library
from memfit.engines.llamacpp.model import LlamaModel
from memfit.errors import EngineError
from memfit.headers.model_spec import TensorSpec
from memfit.memory.estimate import LlamaConfig

values = json.load(sys.stdin)
config = LlamaConfig.from_json(values["config"])
library = load_library()
library.api.llama_backend_init()
tensors = [TensorSpec(**{**one, "shape": tuple(one["shape"])}) for one in values["tensors"]]
model = LlamaModel(library, Devices(library, dummies=False), config, tensors=tensors)
model.open_context(config)
model.decode([1])
print("decoded", flush=True)
address = next(one for one, index in model._weights._indices.items() if index == 3)
del model._weights._indices[address]  # as if somebody had taken the node from us
for prompt in ([1], [1] * 40):
    model.clear_abort()
    try:
        model.decode(prompt)
    except EngineError as error:
        print(error)
"""


def test_a_matrix_that_was_never_given_is_not_computed_with(demo: str) -> None:
    plan = _plan(demo, "150MiB")
    values = {
        "config": plan.config.to_json(),
        "tensors": [asdict(one) for one in plan.spec.tensors],
    }
    done = subprocess.run(
        [sys.executable, "-c", _UNGIVEN], input=json.dumps(values), capture_output=True, text=True
    )
    decoded, *errors = done.stdout.splitlines()
    assert decoded == "decoded" and done.returncode == 0, done.stderr
    (error,) = set(errors)
    assert len(errors) == 2
    assert re.fullmatch(r"the engine would compute with blk\.\d+\.\w+\.weight before it has been .*", error)
