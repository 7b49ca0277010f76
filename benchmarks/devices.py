"""Budgets on loopback workers, held and filled, with the CPU's own text.

    python benchmarks/devices.py [ours] [upstream]     or both

ours: each model runs on one RPC server with about half of what it needs, and on two with a quarter each.
Checked: every device's peak is within its budget and within max(2 %, 16 MiB) of the prediction, at least
97 % of each budget is used, the bytes in RAM likewise, and the first 64 greedy tokens equal those of a run
in RAM (repack off). upstream: llama.cpp's own rpc-server, which knows no budget, never above what `--rpc`
lends it, by the kernel's high-water mark of its process; RAM within 16 MiB of the plan; weights plain, and in
the form of memfit's choice.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rpc_servers import rpc_servers
from shapes import MOE, SMALL
from subjects import memfit, models, peers
from synthetic import write_model

from memfit.headers import read_model
from memfit.units import MIB

PROMPTS = ("The capital of France is", "Once upon a time, in a small village by the sea,")
SHARES = ((0.5,), (0.3, 0.25))
THREADS = "1"  # less than the workers' two, so that a device is the faster place
WORKER_BYTES = 26 * MIB  # of a worker itself


def main() -> int:
    bars = {"ours": ours, "upstream": upstream}
    return sum(bars[name]() for name in sys.argv[1:] or bars)


def ours() -> int:
    failures = 0
    print("| model | devices | tier | budget MiB | predicted | peak | error | used | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with subjects_of_all_kinds() as subjects:
        for name, path in subjects.items():
            texts = [run(path, prompt)[0]["text"] for prompt in PROMPTS]
            _, whole, _ = memfit("plan", path, "--repack", "off", "--ctx", "2048")
            needs = whole["tiers"][0]["weights_bytes"] + whole["tiers"][0]["kv_cache_bytes"]
            needs -= token_table_bytes(path)  # it fits whole or not at all
            for shares in SHARES:
                budgets = [int(share * needs) + WORKER_BYTES + 20 * MIB for share in shares]
                with rpc_servers(*budgets) as endpoints:
                    options = [part for one in endpoints for part in ("--rpc", one)]
                    for prompt, text in zip(PROMPTS, texts, strict=True):
                        document, plan = run(path, prompt, *options)
                        failures += judge(name, len(shares), document, plan, text)
    print(f"{failures} failures")
    return failures


@contextlib.contextmanager
def subjects_of_all_kinds() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="memfit-devices-") as folder:
        subjects = models()
        for name, shape in (("small", SMALL), ("moe", MOE)):
            path = Path(folder) / f"{name}.gguf"
            write_model(path, shape, values="random")
            subjects[name] = str(path)
        yield subjects


def upstream() -> int:
    failures = 0
    print("| model | repack | lent MiB | server's peak | RAM predicted | RAM peak | error | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with subjects_of_all_kinds() as subjects:
        for name, path in subjects.items():
            size = Path(path).stat().st_size
            for share, repack in ((0.35, "off"), (0.6, "off"), (0.45, "auto")):
                lent = int(share * size) + 20 * MIB
                with upstream_server() as (endpoint, process):
                    code, document, error = memfit(
                        "run", path, "--rpc", f"{endpoint}={lent}", "--repack", repack, "--ctx", "1024",
                        "-p", PROMPTS[0], "--raw", "--max-tokens", "16",
                    )  # fmt: skip
                    if code:
                        sys.exit(error)
                    peak = high_water_bytes(process.pid)
                ram = document["measured"]["tiers"][0]
                missing = ram["predicted_bytes"] - ram["peak_bytes"]
                good = peak <= lent and abs(missing) <= 16 * MIB
                failures += not good
                bytes_ = (lent, peak, ram["predicted_bytes"], ram["peak_bytes"], missing)
                cells = " | ".join(f"{one / MIB:.1f}" for one in bytes_)
                print(f"| {name} | {repack} | {cells} | {'ok' if good else 'FAILS'} |", flush=True)
    print(f"{failures} failures")
    return failures


@contextlib.contextmanager
def upstream_server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = peers() / "ggml-rpc-server"
    with subprocess.Popen(
        [program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as one:
        try:
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                time.sleep(0.05)
            yield f"127.0.0.1:{port}", one
        finally:
            one.kill()


def high_water_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found, "the kernel keeps a high-water mark"
    return int(found[1]) << 10


def run(path: str, prompt: str, *options: str) -> tuple[dict, dict]:
    common = [path, "--repack", "off", "--threads", THREADS, "--ctx", "2048", *options]
    _, plan, _ = memfit("plan", *common)
    code, document, error = memfit(
        "run", *common, "-p", prompt, "--raw", "--temperature", "0", "--max-tokens", "64"
    )
    if code:
        sys.exit(error)
    return document, plan


def token_table_bytes(path: str) -> int:
    tensors = read_model(path).tensors
    return sum(one.size_bytes for one in tensors if one.name in ("token_embd.weight", "output.weight"))


def judge(name: str, devices: int, document: dict, plan: dict, text: str) -> int:
    """Prints a row per tier; the number of bars missed."""
    missed = int(document["text"] != text)
    for tier, planned in zip(document["measured"]["tiers"], plan["tiers"], strict=True):
        budget, peak, predicted = (tier[f"{key}_bytes"] for key in ("budget", "peak", "predicted"))
        error, used = predicted - peak, predicted / budget
        good = peak <= budget and abs(error) <= max(0.02 * peak, 16 * MIB)
        good = good and (tier["kind"] == "ram" or used >= 0.97)
        missed += not good
        cells = " | ".join(f"{size / MIB:.1f}" for size in (budget, predicted, peak, error))
        print(
            f"| {name} | {devices} | {tier['kind']} | {cells} | {100 * used:.1f} % | "
            f"{'ok' if good else 'FAILS'} {'same text' if document['text'] == text else 'OTHER TEXT'} |",
            flush=True,
        )
        assert planned["total_bytes"] > 0 or tier["kind"] == "vram"
    return missed


if __name__ == "__main__":
    sys.exit(main())
