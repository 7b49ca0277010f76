"""`memfit rpc-server`: a real server, its budget, its peak, its clients' faults, its deaths.

Clients through the engine run in processes of their own, since a failed assertion in its RPC aborts them;
where bytes have to be wrong, or counted, a client of a few lines speaks the protocol here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import MOST_SECONDS, WAIT_SECONDS, Worker, rpc_server, run_memfit
from memfit.memory.process_memory import process_status
from memfit.memory.rpc_memory import RpcMemory, decode_rpc_memory
from memfit.units import KIB, MIB

pytestmark = pytest.mark.engine

_MEMORY = 160 * MIB
# ggml-rpc.cpp's commands
_ALLOCATE, _FREE, _CLEAR, _SET_TENSOR, _GET_MEMORY, _HELLO = 0, 4, 5, 6, 11, 14


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One for the tests after which it must be as before."""
    with rpc_server(_MEMORY) as started:
        yield started


class _Client:
    """Connected and greeted; waits its turn, since the server serves one at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        self.ask(_HELLO, bytes(24))

    def send(self, command: int, payload: bytes) -> None:
        self.socket.sendall(struct.pack("<BQ", command, len(payload)) + payload)

    def ask(self, command: int, payload: bytes) -> bytes:
        self.send(command, payload)
        (size,) = struct.unpack("<Q", self._read(8))
        return self._read(size)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def memory(self) -> RpcMemory:
        found = decode_rpc_memory(*struct.unpack("<QQ", self.ask(_GET_MEMORY, struct.pack("<I", 0))))
        assert found is not None
        return found

    def allocate(self, size: int) -> int:
        """A buffer, written to the last byte; 0 where it was refused."""
        buffer, _ = struct.unpack("<QQ", self.ask(_ALLOCATE, struct.pack("<IQ", 0, size)))
        if buffer:
            self.send(_CLEAR, struct.pack("<QB", buffer, 1))
        return int(buffer)

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


_ENGINE_CLIENT = """
import ctypes, os, sys
from pathlib import Path
from memfit.engines.llamacpp.library import load_library
library = load_library()
api, ggml, pointer = library.api, library.ggml_base, ctypes.c_void_p
log = api.llama_log_callback(lambda level, text, _: None)
api.llama_log_set(log, None)
rpc = ctypes.CDLL(str(Path(api._base_path) / "libggml-rpc.so"))
rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
rpc.ggml_backend_rpc_add_server.restype = pointer
for name, arguments, result in (
    ("ggml_backend_reg_dev_get", [pointer, ctypes.c_size_t], pointer),
    ("ggml_backend_dev_memory", [pointer] * 3, None),
    ("ggml_backend_dev_buffer_type", [pointer], pointer),
    ("ggml_backend_buft_alloc_buffer", [pointer, ctypes.c_size_t], pointer),
    ("ggml_backend_buffer_free", [pointer], None),
):
    function = getattr(ggml, name)
    function.argtypes, function.restype = arguments, result
device = ggml.ggml_backend_reg_dev_get(rpc.ggml_backend_rpc_add_server(sys.argv[1].encode()), 0)
def memory():
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value
"""


def _engine_command(port: int, code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", _ENGINE_CLIENT + code, f"127.0.0.1:{port}", *arguments]


def _engine(port: int, code: str, *arguments: str) -> list[int]:
    """What a client through the engine's own library prints."""
    done = subprocess.run(
        _engine_command(port, code, *arguments),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        env={**os.environ, "GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "1000"},
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def _eventually(condition: Any) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _gone(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _usable(worker: Worker) -> bool:
    """Whether a client can have most of the budget."""
    with _Client(worker.port) as client:
        budget, overhead, _ = client.memory()
        return client.allocate(budget - overhead - 4 * MIB) != 0


def test_ready_says_what_is_offered(worker: Worker) -> None:
    assert worker.ready == {
        "host": "127.0.0.1",
        "port": worker.port,
        "device": "CPU",
        "memory_bytes": _MEMORY,
        "overhead_bytes": worker.ready["overhead_bytes"],
        "pid": worker.process.pid,
        "server_pid": worker.server_pid,
    }
    assert 10 * MIB < worker.ready["overhead_bytes"] < 48 * MIB


def test_the_engines_client_sees_our_budget(worker: Worker) -> None:
    memory = decode_rpc_memory(*_engine(worker.port, "print(*memory())"))
    assert memory is not None
    budget, overhead, threads = memory
    assert budget == _MEMORY and threads >= 1
    assert abs(overhead - worker.ready["overhead_bytes"]) < 4 * MIB


def test_a_buffer_beyond_the_budget_is_refused_and_the_server_lives(worker: Worker) -> None:
    server = worker.server_pid
    code = """
kind = ggml.ggml_backend_dev_buffer_type(device)
free, _ = memory()
for size in (free + 2**20, 2**40, free - 4 * 2**20):
    buffer = ggml.ggml_backend_buft_alloc_buffer(kind, size)
    print(int(bool(buffer)))
print(int(bool(ggml.ggml_backend_buft_alloc_buffer(kind, 6 * 2**20))))
ggml.ggml_backend_buffer_free(buffer)
print(int(bool(ggml.ggml_backend_buft_alloc_buffer(kind, 6 * 2**20))))
"""
    # Too much at once, absurd, just right, then too much together, and right again after a free.
    assert _engine(worker.port, code) == [0, 0, 1, 0, 1]
    assert worker.server_pid == server
    assert _usable(worker)


def test_the_peak_is_the_kernels_and_each_session_has_its_own(worker: Worker) -> None:
    with _Client(worker.port) as client:
        overhead = client.memory()[1]
        buffer = client.allocate(64 * MIB)
        client.memory()  # answered after the buffer was written
        peak = client.memory()[1]
        assert abs(peak - process_status(worker.server_pid).peak_resident_bytes) < MIB
        assert abs(peak - overhead - 64 * MIB) < 2 * MIB
        client.allocate(8 * MIB)
        client.send(_FREE, struct.pack("<Q", buffer))
        assert client.memory()[1] >= peak  # the mark stays while a buffer lives
    with _Client(worker.port) as client:
        assert abs(client.memory()[1] - overhead) < 2 * MIB


def test_memory_goes_back_when_a_client_leaves(worker: Worker) -> None:
    with _Client(worker.port) as client:
        overhead = client.memory()[1]
        assert client.allocate(96 * MIB)
    assert _eventually(lambda: process_status(worker.server_pid).resident_bytes < overhead + 2 * MIB)


def test_a_whole_model_is_answered_for(demo: str) -> None:
    """Weights, KV cache and compute buffers there, every byte of them touched."""
    code = """
model_parameters = api.llama_model_default_params()
devices = (pointer * 2)(device, None)
model_parameters.devices = ctypes.addressof(devices)
model_parameters.n_gpu_layers, model_parameters.load_mode = 99, api.LLAMA_LOAD_MODE_NONE
_, overhead = memory(), memory()
model = api.llama_model_load_from_file(sys.argv[2].encode(), model_parameters)
context_parameters = api.llama_context_default_params()
context_parameters.n_ctx, context_parameters.n_threads, context_parameters.n_threads_batch = 1024, 1, 1
context = api.llama_init_from_model(model, context_parameters)
tokens = (api.llama_token * 64)(*range(100, 164))
assert api.llama_decode(context, api.llama_batch_get_one(tokens, 64)) == 0
library.touch_compute_buffers(context)
held = [parts for name, parts in library.memory_breakdown(context).items() if name.startswith("RPC")]
live = sum(one.weights_bytes + one.kv_cache_bytes + one.compute_bytes for one in held)
print(live, *overhead, *memory())
"""
    with rpc_server("400MiB", "--threads", "1") as worker:
        live, *answers = _engine(worker.port, code, demo)
        before, after = decode_rpc_memory(*answers[:2]), decode_rpc_memory(*answers[2:])
        assert before is not None and after is not None
        assert live > 128 * MIB
        # Beyond the buffers: the graph and its scratch, one message, pages of the kernels' code.
        assert 0 <= after[1] - before[1] - live < 8 * MIB
        assert abs(after[1] - process_status(worker.server_pid).peak_resident_bytes) < MIB


def test_a_message_beyond_the_budget_ends_its_connection(worker: Worker) -> None:
    """A staging area is no buffer; the kernel refuses it."""
    server = worker.server_pid
    with _Client(worker.port) as client:
        budget, overhead, _ = client.memory()
        assert client.allocate(budget - overhead - 4 * MIB)
        client.memory()
        client.socket.sendall(struct.pack("<BQ", _SET_TENSOR, 16 * MIB))
        assert client.socket.recv(1) == b""
    assert _usable(worker)
    assert worker.server_pid == server
    assert process_status(server).peak_resident_bytes <= budget


def test_a_killed_client_leaves_nothing(worker: Worker) -> None:
    """In the middle of a session, its buffer held."""
    server = worker.server_pid
    code = """
assert ggml.ggml_backend_buft_alloc_buffer(ggml.ggml_backend_dev_buffer_type(device), 64 * 2**20)
os.write(1, b"here")
sys.stdin.read()
"""
    with subprocess.Popen(
        _engine_command(worker.port, code), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.read(4) == b"here"
        finally:
            client.kill()
    assert _usable(worker)
    assert worker.server_pid == server


def test_a_client_that_leaves_while_it_sends_a_tensor(worker: Worker) -> None:
    server = worker.server_pid
    with _Client(worker.port) as client:
        assert client.allocate(32 * MIB)
        client.socket.sendall(struct.pack("<BQ", _SET_TENSOR, 8 * MIB) + bytes(MIB))
    assert _usable(worker)
    assert worker.server_pid == server


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"",
        bytes(4096),
        b"\xff" * 4096,
        struct.pack("<BQ", _HELLO, 2**63),
        struct.pack("<BQ", _HELLO, 24) + bytes(24) + b"\xff" * 64,
        struct.pack("<BQ", _HELLO, 24) + bytes(24) + struct.pack("<BQ", _SET_TENSOR, 4) + b"abcd",
    ],
)
def test_garbage_is_shrugged_off(worker: Worker, garbage: bytes) -> None:
    server = worker.server_pid
    with socket.create_connection(("127.0.0.1", worker.port), timeout=WAIT_SECONDS) as client:
        client.sendall(garbage)
    assert _usable(worker)
    assert worker.server_pid == server


@pytest.mark.parametrize("how", ["killed", "aborted by a client"])
def test_a_dead_server_is_started_again_at_the_same_port(how: str) -> None:
    with rpc_server("30%") as worker:
        server = worker.server_pid
        if how == "killed":
            os.kill(server, signal.SIGKILL)
        else:
            with _Client(worker.port) as client:
                # A message longer than any vector: the engine's server does not survive it.
                client.socket.sendall(struct.pack("<BQ", _SET_TENSOR, 2**64 - 1))
                client.socket.recv(1)
        assert worker.process.stderr is not None
        while "lending again" not in (line := worker.process.stderr.readline()):
            assert line  # it ends only with the worker
        assert worker.server_pid != server
        with _Client(worker.port) as client:
            assert client.memory()[0] == worker.ready["memory_bytes"]  # not 30% of what is free now


def test_a_server_that_dies_again_and_again_is_given_up() -> None:
    with rpc_server(_MEMORY) as worker:
        for _ in range(6):
            os.kill(worker.server_pid, signal.SIGKILL)
            assert worker.process.stderr is not None
            while (line := worker.process.stderr.readline()) and "lending again" not in line:
                pass
        assert worker.process.wait(timeout=WAIT_SECONDS) == 5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_both(number: signal.Signals, code: int) -> None:
    with rpc_server(_MEMORY) as worker, _Client(worker.port):  # even with a client connected
        server = worker.server_pid
        worker.process.send_signal(number)
        out, err = worker.process.communicate(timeout=WAIT_SECONDS)
    assert (worker.process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert _gone(server)


def test_no_server_outlives_its_parent() -> None:
    with rpc_server(_MEMORY) as worker:
        server = worker.server_pid
        worker.process.kill()
        worker.process.wait(timeout=WAIT_SECONDS)
        assert _eventually(lambda: _gone(server))


def test_two_workers_cannot_have_one_port(worker: Worker) -> None:
    second = run_memfit("rpc-server", "--port", str(worker.port))
    assert (second.code, second.out) == (2, "")
    assert "already in use" in second.err and str(worker.port) in second.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory", "4MiB"), ("--memory", "while idle")),
        (("--memory", "24MiB"), ("--memory", "a client needs")),
        (("--memory", "900TiB"), ("--memory", "more than there is")),
        (("--memory", "lots"), ("--memory", "lots")),
        (("--host", "192.0.2.1"), ("192.0.2.1", "cannot listen")),
        (("--host", "::1"), ("--host", "IPv4")),
        (("--port", "65536"), ("--port",)),
        (("--threads", "0"), ("--threads",)),
    ],
)
def test_bad_requests_are_said_clearly(options: tuple[str, ...], words: tuple[str, ...]) -> None:
    run = run_memfit("rpc-server", "--port", "0", *options)
    assert (run.code, run.out) == (2, "")
    assert "Traceback" not in run.err
    assert all(word in run.err for word in words), run.err


def test_a_host_that_others_reach_is_warned_of() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "memfit",
            "rpc-server",
            "--host",
            "0.0.0.0",
            "--port",
            "0",
            "--memory",
            "99MiB",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(MOST_SECONDS, process.kill)
    watchdog.start()
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        watchdog.cancel()
        process.terminate()
        _, err = process.communicate(timeout=WAIT_SECONDS)
    assert line.startswith("memfit rpc-server: lending CPU, 99.00 MiB, at 0.0.0.0:")
    assert "no encryption" in err and "tunnel" in err


def test_the_server_is_lean() -> None:
    heavy = ("numpy", "rich", "click", "psutil", "jinja2")
    code = f"import sys, memfit.engines.llamacpp.rpc_server\nprint([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.stdout == "[]\n", done.stderr


def test_threads_are_given_to_the_server() -> None:
    with rpc_server(_MEMORY, "--threads", "1") as worker:
        (setting,) = (
            word
            for word in Path(f"/proc/{worker.server_pid}/cmdline").read_text().split("\0")
            if word.startswith("{")
        )
        assert json.loads(setting)["threads"] == 1
        assert process_status(worker.server_pid).resident_bytes < 64 * 1024 * KIB
