"""The engines' processes with libraries that print to stdout, from Python and from C, from their start on."""

from __future__ import annotations

from pathlib import Path

import pytest

import memfit
from memfit.engines.llamacpp import calibrate as llama_calibrate
from memfit.engines.llamacpp.rpc_supervisor import RpcSupervisor
from memfit.engines.requests import Sampling
from memfit.engines.transformers import calibrate as transformers_calibrate
from memfit.engines.transformers.process import TransformersWorker
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.planner.request import Budget, Workload
from memfit.units import MIB

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("printing_libraries")]


def test_the_oracle_and_the_llamacpp_worker(demo: str) -> None:
    plan = memfit.plan(demo, budget=Budget(ram=512 * MIB), workload=Workload(context=256, repack="off"))
    pieces: list[str] = []
    with memfit.load(plan) as session:
        done = session.generate("The sky is", Sampling(temperature=0, max_tokens=8), pieces.append)
        streamed = list(session.stream("The sky is", Sampling(temperature=0, max_tokens=8)))
    assert done.completion_tokens == 8 and "noise" not in done.text
    assert "".join(pieces) == "".join(streamed) == done.text


def test_the_calibration_run_of_llamacpp() -> None:
    found = llama_calibrate._measure_baseline()
    assert MIB < found["parent"]["anonymous_bytes"] < 200 * MIB


def test_the_rpc_server() -> None:
    with RpcSupervisor(host="127.0.0.1", port=0, memory="200MiB") as supervisor:
        info = supervisor.start()
        assert (info.memory_bytes, info.device) == (200 * MIB, "CPU") and info.port > 0


def test_the_transformers_worker_and_its_calibration_run(llama: Path) -> None:
    config = TransformersConfig(
        folder=llama,
        paths=tuple(sorted(llama.glob("*.safetensors"))),
        load_in="fp32",
        double_quant=False,
        context=256,
        ubatch=256,
        threads=1,
    )
    found = transformers_calibrate._try_small_checkpoint(config, ())
    assert found["layer_seconds"] > 0 and found["worker"]["anonymous_bytes"] > MIB


def test_the_conversion_of_gguf_files(demo: str, tmp_path: Path) -> None:
    with TransformersWorker(load_in="fp32", threads=1) as worker:
        found = worker.ask("describe_gguf", file=demo, folder=str(tmp_path), dtype="fp32")
    assert found["peak_bytes"] > MIB and (tmp_path / "config.json").is_file()
