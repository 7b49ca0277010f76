"""`memfit monitor`: processes that belong together, servers and strangers, the view at any width."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import pty
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from memfit.cli.main import main
from memfit.cli.monitor import _told
from memfit.cli.monitor_view import sections
from memfit.errors import WrongValueError
from memfit.hardware.nvidia import GpuMoment, GpuWatch
from memfit.monitor import snapshot as snapshots
from memfit.monitor.processes import CommandLine, ProcessGroup, ProcessWatch, _Watched, program_of
from memfit.monitor.servers import KEY_MISSING, Server, Tier, parse_address
from memfit.monitor.snapshot import CpuState, GpuState, MachineState, MachineWatch, RamState, Snapshot
from memfit.units import GIB, MIB

_TIER = {
    "name": "ram",
    "kind": "ram",
    "budget_bytes": 1000 * MIB,
    "limit_bytes": 1000 * MIB,
    "weights_bytes": 400 * MIB,
    "kv_cache_bytes": 200 * MIB,
    "compute_bytes": 50 * MIB,
    "overhead_bytes": 100 * MIB,
    "reserved_bytes": 0,
    "total_bytes": 750 * MIB,
}
_PLAN = {
    "model": {"name": "Toy", "quantization": "Q8_0", "source": "/toy.gguf"},
    "engine": "llamacpp",
    "state": "ready",
    "context": 2048,
    "parallel": 4,
    "kv_type": "f16",
    "tiers": [_TIER],
    "predicted": {
        "prompt_tokens_per_second": {"value": 800.0, "low": 1.0, "high": 900.0},
        "generation_tokens_per_second": {"value": 40.0, "low": 1.0, "high": 50.0},
        "together_tokens_per_second": None,
        "basis": "calibrated",
    },
    "measured": {
        "tiers": [{"name": "ram", "held_bytes": 700 * MIB, "peak_bytes": 720 * MIB, "error_bytes": 30 * MIB}]
    },
    "running": 1,
    "waiting": 2,
    "cells_in_use": 60,
    "restarts": 0,
}
_ANSWER = {
    "ended": 1.0,
    "prompt_tokens": 110,
    "cached_tokens": 10,
    "completion_tokens": 30,
    "prompt_seconds": 0.5,
    "generation_seconds": 2.0,
}
_ACTIVITY = {"running": 1, "waiting": 2, "generated_tokens": 30, "prompt_tokens": 100, "recent": [_ANSWER]}
_OWN = ("MEMFIT_API_KEY", "NO_COLOR", "TERM", "COLUMNS")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _OWN:
        monkeypatch.delenv(name, raising=False)


class _Fake:
    """A server that answers by path: an object, or bytes as they are. It notes the keys that it is sent."""

    def __init__(self, answers: dict[str, Any], *, key: str | None = None, status: int = 200) -> None:
        self.answers, self.keys = answers, list[str | None]()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers.get("Authorization")
                fake.keys.append(given)
                body = fake.answers.get(self.path, b"")
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(401 if key and given != f"Bearer {key}" else status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.01))
        self._thread.start()

    def __enter__(self) -> _Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@pytest.fixture
def fake() -> Iterator[_Fake]:
    with _Fake({"/plan": _PLAN, "/activity": _ACTIVITY}) as found:
        yield found


def _call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["monitor", *arguments])
    said = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, said.out, said.err


# --- addresses ---


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("127.0.0.1:81", "http://127.0.0.1:81"),
        (":81", "http://127.0.0.1:81"),
        ("81", "http://127.0.0.1:81"),
        ("models.local", "http://models.local:8080"),
        ("[::1]:81", "http://[::1]:81"),
        ("https://models.org", "https://models.org"),
    ],
)
def test_an_address(text: str, address: str) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        ":0",
        ":65536",
        "a b",
        "ftp://x",
        "http://",
        "http://:81",
        "user:key@host",
        "x/plan",
        "x?y",
        "é",
        "::1",
        "[::1",
        "http://x:y",
        "\x1b[31m",
        "\udcff",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(WrongValueError, match="ADDRESS"):
        parse_address(text)


def test_no_address_is_a_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _call(capsys, "a b", "--json")
    assert code == 2 and err.startswith("memfit: ADDRESS 'a b' is no server's")
    assert json.loads(out)["error"]["field"] == "ADDRESS"


@pytest.mark.parametrize("key", ["", " key", "a\nb", "\udcff"])
def test_a_key_that_no_header_keeps(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _call(capsys, ":81", "--api-key", key)
    assert code == 2 and err.startswith("memfit: --api-key")


# --- a server ---


def test_a_server_as_json(fake: _Fake, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _call(capsys, fake.address, "--json")
    assert (code, err) == (0, "")
    (server,) = json.loads(out)["servers"]
    assert server["tiers"] == [
        {name: size for name, size in _TIER.items() if name not in ("limit_bytes", "reserved_bytes")}
        | {"held_bytes": 700 * MIB, "peak_bytes": 720 * MIB}
    ]
    assert server["predicted"] == {"prompt": 800.0, "generation": 40.0, "together": None}
    assert server["answered"] == {
        "answers": 1,
        "prompt_tokens": 110,
        "cached_tokens": 10,
        "prompt_tokens_per_second": 200.0,  # 100 that were computed, in half a second
        "generation_tokens_per_second": 15.0,
    }
    assert (server["running"], server["waiting"], server["cells_in_use"]) == (1, 2, 60)
    assert (server["error"], server["model"], server["tokens_per_second"]) == (None, "Toy", 0.0)


def test_a_server_in_words(fake: _Fake, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(capsys, fake.address.removeprefix("http://"))
    lines = out.splitlines()
    assert code == 0
    assert lines[:5] == [
        f"Toy · Q8_0 · {fake.address}",
        "ready · llamacpp · context 2048 · 4 sequences · KV cache f16",
        "RAM  700.00 MiB of 1000.00 MiB · 70 %",
        "━" * 42 + "╇" + "─" * 17,  # 60 cells: 42 are held, the peak's is the 43rd
        "━ held 700.00 MiB  ╇ peak 720.00 MiB  predicted 750.00 MiB",
    ]
    assert lines[5] == "█" * 24 + "▓" * 12 + "▒" * 3 + "░" * 6 + "·" * 15
    assert "queue  1 running · 2 waiting" in lines


def test_tokens_a_second_are_those_between_two_looks() -> None:
    with Server("http://127.0.0.1:1") as server:
        speeds = [server._speed_at(float(at), tokens) for at, tokens in enumerate((100, 120, 160, 200, 7))]
    # The window is two seconds, and a server that was started again begins anew.
    assert speeds == [None, 20.0, 30.0, 40.0, None]


def test_a_server_that_dies_between_two_looks(fake: _Fake) -> None:
    with Server(fake.address) as server:
        assert server.look().error is None
        fake.end()
        gone = server.look()
    assert "nobody answers" in str(gone.error) and gone.tiers == ()


def test_nobody_is_there(fake: _Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.end()
    code, out, err = _call(capsys, fake.address, "--json")
    assert (
        code == 5 and err == f"memfit: {fake.address}: nobody answers; memfit serve MODEL starts a server\n"
    )
    assert json.loads(out)["error"]["field"] == fake.address


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"/plan": b"<html>"}, "no memfit server"),
        ({"/plan": []}, "no memfit server"),
        ({"/plan": {}}, "plan.model"),
        ({"/plan": _PLAN | {"tiers": [_TIER | {"weights_bytes": -1}]}}, r"plan.tiers\[0\].weights_bytes"),
        ({"/plan": _PLAN | {"tiers": [{}]}}, r"plan.tiers\[0\].\w+ is missing"),
        ({"/plan": _PLAN | {"running": 10**400}}, "plan.running"),
        ({"/plan": _PLAN | {"context": True}}, "plan.context"),
        ({"/plan": b'{"running": NaN}'}, "no memfit server"),
        ({"/plan": _PLAN, "/activity": _ACTIVITY | {"recent": [3]}}, r"activity.recent\[0\]"),
        ({"/plan": b"[" * 200_000}, "no memfit server"),
        ({"/plan": b" " * (5 * MIB)}, "more than 4 MiB"),
    ],
)
def test_strangers_at_an_address(answers: dict[str, Any], said: str) -> None:
    with _Fake({"/activity": _ACTIVITY} | answers) as fake, Server(fake.address) as server:
        error = server.look().error
        assert error is not None and error.exit_code == 5
        assert re.search(said, str(error))


@pytest.mark.parametrize("piece", [b"X-A: b\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["head", "go on"])
def test_a_head_without_an_end(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read is quick, and the whole never comes."""
    monkeypatch.setattr("memfit.monitor.servers._WHOLE_SECONDS", 0.3)

    class Endless(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.sendall(b"HTTP/1.1 200 OK\r\n" if piece.startswith(b"X") else piece)
                while True:
                    self.request.sendall(piece)
                    time.sleep(0.02)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Endless) as endless:
        endless.daemon_threads = True
        threading.Thread(target=endless.serve_forever, args=(0.01,), daemon=True).start()
        with Server(f"http://127.0.0.1:{endless.server_address[1]}") as server:
            for _ in range(2):  # and it can be asked again
                assert "too slowly" in str(server.look().error)
        endless.shutdown()


@pytest.mark.parametrize("name", ["weights_bytes", "held_bytes"])
def test_a_tier_that_holds_far_more_than_its_budget(name: str, fake: _Fake) -> None:
    """A bar as long as a stranger says would take all memory."""
    fake.answers["/plan"] = json.loads(json.dumps(_PLAN))
    part = fake.answers["/plan"]["measured" if name == "held_bytes" else "tiers"]
    (part["tiers"] if isinstance(part, dict) else part)[0][name] = 2**50
    with Server(fake.address) as server:
        shown = _shown(Snapshot(servers=(server.look(),)))
    assert "1.00 PiB" in shown or "1048576.00 GiB" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_a_speed_that_no_clock_measures_is_unknown(fake: _Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answers["/activity"] = {**_ACTIVITY, "recent": [{**_ANSWER, "generation_seconds": 5e-324}]}
    code, out, _ = _call(capsys, fake.address, "--json")
    assert code == 0
    assert json.loads(out)["servers"][0]["answered"]["generation_tokens_per_second"] is None


def test_another_status() -> None:
    with _Fake({}, status=404) as fake, Server(fake.address) as server:
        assert "/plan answers 404" in str(server.look().error)


def test_keys(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with _Fake({"/plan": _PLAN, "/activity": _ACTIVITY}, key="kéy") as fake:
        assert KEY_MISSING in _call(capsys, fake.address)[2]
        assert "the API key is wrong" in _call(capsys, fake.address, "--api-key", "other")[2]
    # Headers come as Latin-1.
    with _Fake({"/plan": _PLAN, "/activity": _ACTIVITY}, key="kéy".encode().decode("latin-1")) as fake:
        monkeypatch.setenv("MEMFIT_API_KEY", "kéy")
        assert _call(capsys, fake.address)[0] == 0


def test_a_strangers_text_does_no_harm() -> None:
    model = {"name": "\x1b[2J[bold]x", "quantization": 7}
    with (
        _Fake({"/plan": _PLAN | {"model": model}, "/activity": _ACTIVITY}) as fake,
        Server(fake.address) as server,
    ):
        state = server.look()
    shown = _shown(Snapshot(servers=(state,)))
    assert "\x1b" not in shown and "[bold]x" in shown


# --- processes ---


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ("memfit serve demo", ("memfit", ["serve", "demo"])),
        ("/usr/bin/python3.11 /opt/bin/memfit serve demo", ("memfit", ["serve", "demo"])),
        ("python -m memfit run demo", ("memfit", ["run", "demo"])),
        ("python3 -X dev -u -m memfit run", ("memfit", ["run"])),
        ("python -P -m memfit.engines.llamacpp.worker 12,11", ("memfit.engines.llamacpp.worker", ["12,11"])),
        ("python -c code memfit.hub.subprocess 3,4", ("memfit.hub.subprocess", ["3,4"])),
        ("vim memfit", None),
        ("python memfit.py", None),
        ("python -m memfitter run", None),
        ("python -m pytest -m memfit", None),
        ("python -c print()", None),
        ("python -m", None),
        ("python", None),
        ("", None),
    ],
)
def test_which_processes_are_memfits(words: str, program: object) -> None:
    assert program_of(words.split()) == program


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("serve demo", CommandLine(command="serve", model="demo", port=8080)),
        ("serve --hard-cap m.gguf --port 81", CommandLine(command="serve", model="m.gguf", port=81)),
        (
            "serve --ram 1GiB --host ::1 m.gguf",
            CommandLine(command="serve", model="m.gguf", host="::1", port=8080),
        ),
        ("serve --port x", CommandLine(command="serve")),
        ("serve --port 65536", CommandLine(command="serve")),
        ("quantize --dry-run a.gguf b.gguf", CommandLine(command="quantize", model="a.gguf")),
        ("compare a.gguf b.gguf", CommandLine(command="compare", model="a.gguf b.gguf")),
        ("run -p secret", CommandLine(command="run")),
        ("run --no-such-option m.gguf", CommandLine(command="run")),
        ("worker", CommandLine(command="worker")),
        ("doctor", CommandLine(command="doctor")),
        ("nonsense", CommandLine(command="memfit")),
        ("", CommandLine(command="memfit")),
    ],
)
def test_what_a_command_was_told(words: str, told: CommandLine) -> None:
    assert _told(words.split()) == told


_PARENT = """
import subprocess, sys, time
held = bytearray(b"x") * 2**24
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def _group(tmp_path: Any, *arguments: str) -> Iterator[tuple[int, int]]:
    """A process that looks like memfit, and its child's."""
    script = tmp_path / "memfit"
    script.write_text(_PARENT)
    command = [sys.executable, str(script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        try:
            yield process.pid, child
        finally:
            for one in (child, process.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(one).kill()


def test_a_parent_and_its_workers_are_one(tmp_path: Any) -> None:
    with _group(tmp_path, "run", "demo") as (parent, child):
        watch = ProcessWatch(_told)
        watch.look()
        (found,) = [one for one in watch.look() if one.pid == parent]
        assert found.pids == (parent, child)
        assert found.told == CommandLine(command="run", model="demo")
        assert found.held_bytes is not None and found.anonymous_bytes is not None
        assert 16 * MIB < found.anonymous_bytes < found.held_bytes < 200 * MIB
        assert found.is_own_user and found.address is None and found.cpus >= 0
        psutil.Process(parent).kill()
        psutil.Process(parent).wait()
        assert parent not in {one.pid for one in watch.look()}


@pytest.mark.parametrize(
    ("told", "address"),
    [
        (CommandLine(command="serve", port=81), "http://127.0.0.1:81"),
        (CommandLine(command="serve", port=81, host="0.0.0.0"), "http://127.0.0.1:81"),
        (CommandLine(command="serve", port=81, host="::"), "http://[::1]:81"),
        (CommandLine(command="serve", port=81, host="10.0.0.1"), None),
        (CommandLine(command="serve", port=81, host="evil.org/x"), None),
        (CommandLine(command="serve"), None),
        (CommandLine(command="run", port=81), None),
    ],
)
def test_where_another_users_server_listens(
    told: CommandLine, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(kind: str) -> None:
        raise psutil.AccessDenied

    watched = _Watched(psutil.Process(), told)
    monkeypatch.setattr(watched.process, "net_connections", refuse)
    watched.find_address()
    found = watched.look()
    assert found is not None and found.address == address


def test_where_a_server_listens(fake: _Fake) -> None:
    watched = _Watched(psutil.Process(), CommandLine(command="serve"))
    watched.find_address()
    found = watched.look()
    assert found is not None and found.address == fake.address


def test_who_looks_is_no_part(tmp_path: Any) -> None:
    with _group(tmp_path, "monitor") as (parent, _):
        assert parent not in {one.pid for one in ProcessWatch(_told, own_pid=parent).look()}


def test_memory_that_may_not_be_read_is_unknown(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise PermissionError

    monkeypatch.setattr("memfit.monitor.processes.process_memory", refuse)
    with _group(tmp_path, "run", "demo") as (parent, _):
        (found,) = [one for one in ProcessWatch(_told).look() if one.pid == parent]
    assert found.held_bytes is None
    assert "not readable" in _shown(_machine_snapshot(found))


def test_another_users_server_is_not_told_the_key(fake: _Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _process(address=fake.address)
    theirs = dataclasses.replace(ours, pid=2, is_own_user=False)
    with MachineWatch("secret", _told) as watch:
        for groups in ((ours,), (theirs,), (ours, theirs)):
            fake.keys.clear()
            monkeypatch.setattr(watch._processes, "look", lambda groups=groups: groups)
            found = watch.look()
            assert [one.error for one in found.servers] == [None] * len(groups)
            assert set(fake.keys) == {"Bearer secret" if one.is_own_user else None for one in groups}
        monkeypatch.setattr(watch._processes, "look", lambda: ())
        assert watch.look().servers == ()


def test_this_machine_as_json(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with _group(tmp_path, "run", "demo") as (parent, child):
        code, out, err = _call(capsys, "--once", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "") and set(found) == {"machine", "processes", "servers"}
    ram, cpu = found["machine"]["ram"], found["machine"]["cpu"]
    (process,) = [one for one in found["processes"] if one["pid"] == parent]
    assert process["pids"] == [parent, child] and process["command"] == "run" and process["model"] == "demo"
    assert 0 < process["held_bytes"] <= ram["memfit_bytes"]
    assert 0 < ram["others_bytes"] <= ram["total_bytes"] - ram["available_bytes"]
    assert 0 < cpu["busy"] <= cpu["cpus"] == psutil.cpu_count()


# --- GPUs ---


class _Nvml:
    """A driver with a card of two processes; it may hide what they hold, as WSL2's does."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, held: dict[int, int | None]) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Callable[..., Any]:
        processes = [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self._held.items()]
        answers = {
            "nvmlInit": None,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetName": "RTX 3060",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=12 * GIB, used=4 * GIB, free=8 * GIB),
            "nvmlDeviceGetComputeRunningProcesses": processes,
            "nvmlDeviceGetGraphicsRunningProcesses": [],
            "nvmlDeviceGetTemperature": 61,
        }

        def call(*_: object) -> Any:
            if name not in answers:
                raise self.NVMLError(name)
            return answers[name]

        return call


@pytest.mark.parametrize(("theirs", "others"), [(GIB, GIB), (None, None)])
def test_a_gpu_and_who_holds_it(
    theirs: int | None, others: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _Nvml({7: 2 * GIB, 8: theirs}))  # type: ignore[arg-type]
    monkeypatch.setattr(snapshots, "read_drm_gpus", lambda first: ())
    (moment,) = GpuWatch().look()
    assert isinstance(moment, GpuMoment) and moment.power_watts is None  # this driver does not say
    with MachineWatch(None, _told) as watch:
        (gpu,) = watch._gpu_states({7})
    assert (gpu.memfit_bytes, gpu.others_bytes) == (2 * GIB, others)
    assert (gpu.used_bytes, gpu.temperature_celsius) == (4 * GIB, 61)


def test_no_driver_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuWatch().look() == ()


# --- what is seen ---


def _process(**facts: Any) -> ProcessGroup:
    known: dict[str, Any] = {
        "pid": 1,
        "told": CommandLine(command="serve", model="/models/[toy].gguf"),
        "pids": (1, 3),
        "started": time.time() - 5000,
        "is_own_user": True,
        "address": None,
        "cpus": 1.5,
        "held_bytes": GIB,
        "anonymous_bytes": GIB,
    }
    return ProcessGroup(**(known | facts))


def _machine_snapshot(*processes: ProcessGroup) -> Snapshot:
    gpu = GpuState(
        index=0,
        name="RTX [3060]",
        total_bytes=12 * GIB,
        used_bytes=9 * GIB,
        memfit_bytes=6 * GIB,
        others_bytes=2 * GIB,
        temperature_celsius=61,
        power_watts=147.6,
    )
    ram = RamState(total_bytes=8 * GIB, available_bytes=4 * GIB, memfit_bytes=2 * GIB, others_bytes=2 * GIB)
    machine = MachineState(ram=ram, cpu=CpuState(cpus=4, busy=3.0, memfit=2.0), gpus=(gpu,))
    return Snapshot(machine=machine, processes=processes)


def _shown(snapshot: Snapshot, width: int = 100, **options: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, emoji=False, highlight=False, **options)
    for title, body in sections(snapshot):
        console.print(title, markup=False)
        console.print(body)
    return out.getvalue()


def test_a_machine_in_words() -> None:
    lines = _shown(_machine_snapshot(_process())).splitlines()
    assert lines[1:4] == [
        "RAM  4.00 GiB available of 8.00 GiB",
        "█" * 15 + "▒" * 15 + "·" * 30,
        "█ memfit 2.00 GiB  ▒ others 2.00 GiB  · available",
    ]
    assert lines[4:6] == ["CPU  3.0 of 4 busy", "█" * 30 + "▒" * 15 + "·" * 15]
    assert lines[7:9] == [
        "GPU 0  3.00 GiB free of 12.00 GiB · 61 °C · 148 W  RTX [3060]",
        "█" * 30 + "▒" * 15 + "·" * 15,
    ]
    assert [line.split() for line in lines[-2:]] == [
        ["PID", "command", "model", "RAM", "CPUs", "age", "processes"],
        ["1", "serve", "[toy].gguf", "1.00", "GiB", "1.50", "1", "h", "23", "min", "2"],
    ]


@pytest.mark.parametrize(
    ("held_bytes", "code", "word"),
    [
        (799, "\x1b[32m", ""),
        (800, "\x1b[33m", "above 80 %"),
        (899, "\x1b[33m", "above 80 %"),
        (900, "\x1b[31m", "above 90 %"),
        (1001, "\x1b[31m", "over the budget"),
    ],
)
def test_amber_and_red(held_bytes: int, code: str, word: str, fake: _Fake) -> None:
    with Server(fake.address) as server:
        state = server.look()
    tier = dataclasses.replace(state.tiers[0], budget_bytes=1000, total_bytes=1, held_bytes=held_bytes)
    state = dataclasses.replace(state, tiers=(tier,))
    text = _shown(Snapshot(servers=(state,)), force_terminal=True, color_system="standard", no_color=False)
    (line,) = [one for one in text.splitlines() if " of 1000 B · " in one]
    assert code in line and word in line


def test_a_tier_of_nothing() -> None:
    """A stranger's zeros divide nothing."""
    names = ("budget", "weights", "kv_cache", "compute", "overhead", "total", "held", "peak")
    tier = Tier(name="gpu0", kind="vram", **dict.fromkeys((f"{name}_bytes" for name in names), 0))
    with _Fake({"/plan": _PLAN, "/activity": _ACTIVITY}) as fake, Server(fake.address) as server:
        state = dataclasses.replace(server.look(), tiers=(tier,))
    assert "gpu0  0 B of 0 B" in _shown(Snapshot(servers=(state,)))


# --- the live view ---

textual = pytest.importorskip("textual", reason="textual is not installed")


def _live(look: Callable[[], Snapshot], size: tuple[int, int], act: Callable[[Any, Any], Any]) -> None:
    from memfit.monitor.app import MonitorApp

    async def run() -> None:
        app = MonitorApp(look, sections)
        async with app.run_test(size=size) as pilot:
            await act(app, pilot)

    asyncio.run(run())


async def _until(pilot: Any, holds: Callable[[], Any]) -> None:
    ends = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < ends, "it never came"
        await pilot.pause(0.02)


def _titles(app: Any) -> list[str]:
    return [str(one.border_title) for one in app.query(".section")]


def test_sections_come_and_go_as_servers_do(fake: _Fake) -> None:
    with Server(fake.address) as server, Server(fake.address) as second:
        servers = [server]

        def look() -> Snapshot:
            states = tuple(one.look() for one in servers)
            return dataclasses.replace(_machine_snapshot(_process()), servers=states)

        async def act(app: Any, pilot: Any) -> None:
            await _until(pilot, lambda: len(_titles(app)) == 3)
            assert _titles(app)[0] == "this machine" and fake.address in _titles(app)[2]
            servers.append(second)
            await _until(pilot, lambda: len(_titles(app)) == 4)
            servers.clear()
            await _until(pilot, lambda: len(_titles(app)) == 2)

        _live(look, (100, 40), act)


def test_a_server_that_dies_is_asked_again(fake: _Fake) -> None:
    with Server(fake.address) as server:
        snapshot = Snapshot(servers=(server.look(),))
        assert snapshot.servers[0].error is None
        fake.end()
        seen: list[Snapshot] = []

        def look() -> Snapshot:
            seen.append(Snapshot(servers=(server.look(),)))
            return seen[-1]

        async def act(app: Any, pilot: Any) -> None:
            await _until(pilot, lambda: len(seen) >= 3)
            assert _titles(app) == [fake.address]
            assert "nobody answers" in str(app.query_one(".section").content)

        _live(look, (80, 20), act)


@pytest.mark.parametrize("size", [(200, 50), (60, 24), (40, 10), (20, 5), (4, 2), (1, 1)])
def test_any_size_and_resizing(size: tuple[int, int], fake: _Fake) -> None:
    with Server(fake.address) as server:
        found = dataclasses.replace(_machine_snapshot(_process()), servers=(server.look(),))

    async def act(app: Any, pilot: Any) -> None:
        await _until(pilot, lambda: len(_titles(app)) == 3)
        await pilot.resize_terminal(20, 10)
        await pilot.pause()
        assert app.screen.has_class("-narrow")
        await pilot.resize_terminal(100, 10)
        await pilot.pause()
        assert app.screen.has_class("-wide")

    _live(lambda: found, size, act)


def test_it_scrolls() -> None:
    found = _machine_snapshot(*(_process(pid=number) for number in range(1, 60)))

    async def act(app: Any, pilot: Any) -> None:
        await _until(pilot, lambda: len(_titles(app)) == 2)
        everything = app.query_one("#all")
        for key, least in (("down", 1), ("pagedown", 8), ("up", 7), ("pageup", 0)):
            await pilot.press(key)
            await pilot.pause()
            assert everything.scroll_y == least, key

    _live(lambda: found, (80, 9), act)


def test_a_fault_ends_it_and_is_told() -> None:
    def look() -> Snapshot:
        raise ZeroDivisionError

    async def act(app: Any, pilot: Any) -> None:
        await _until(pilot, lambda: not app.is_running)
        assert isinstance(app.failure, ZeroDivisionError)

    _live(look, (80, 20), act)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_keys_that_end_it(key: str) -> None:
    async def act(app: Any, pilot: Any) -> None:
        await _until(pilot, lambda: len(_titles(app)) == 2)
        await pilot.press(key)
        await pilot.pause()
        assert not app.is_running

    _live(_machine_snapshot, (80, 20), act)


def test_without_textual_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memfit.cli.monitor._can_show", lambda: True)
    monkeypatch.setitem(sys.modules, "textual", None)
    code, _, err = _call(capsys)
    assert code == 2 and "pip install 'memfit[monitor]'" in err


@pytest.mark.parametrize(("term", "shows"), [("xterm", True), ("dumb", False), ("", False)])
def test_terminals_that_can_show_it(term: str, shows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.cli.monitor import _can_show

    assert not _can_show()  # here is none
    terminal = SimpleNamespace(isatty=lambda: True)
    for name in ("__stdin__", "stdout", "__stderr__"):
        monkeypatch.setattr(sys, name, terminal)
    monkeypatch.setenv("TERM", term)
    assert _can_show() == shows


@pytest.mark.parametrize("ending", ["q", "\x03", "SIGTERM"])
def test_the_terminal_is_given_back(ending: str, fake: _Fake) -> None:
    """As a user has it: a terminal, a key or a signal, and what stood there before."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "memfit", "monitor", fake.address]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(ours, 65536):
                written += data
                if ending and b"predicted" in written:
                    if ending == "SIGTERM":
                        process.send_signal(signal.SIGTERM)
                    else:
                        os.write(ours, ending.encode())
                    ending = ""
        os.close(ours)
    assert process.returncode == 0, written.decode(errors="replace")
    assert b"\x1b[?1049h" in written and written.rstrip().endswith(
        written[written.rindex(b"\x1b[?1049l") :].rstrip()
    )
    assert b"Traceback" not in written


def test_printing_once_loads_no_textual(fake: _Fake) -> None:
    code = (
        "import sys\nfrom memfit.cli.main import main\n"
        f"try:\n    main(['monitor', {fake.address!r}])\n"
        "finally:\n    print('textual' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
