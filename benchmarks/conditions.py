"""llama.cpp's placement options, by memfit's plan and by llama.cpp itself: bytes of weights on a device.

    python benchmarks/conditions.py

The device is llama.cpp's own rpc-server on loopback; llama-completion says what it put there, in MiB of two
decimals; the rest is RAM's. Bar: 10 of 10 the same.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from devices import upstream_server
from shapes import MOE, SMALL
from subjects import memfit, models, peers
from synthetic import write_model

from memfit.units import MIB

CASES = (
    ("demo", ("-ngl", "0")),
    ("demo", ("-ngl", "1")),
    ("demo", ("-ngl", "11")),
    ("demo", ("-ngl", "99")),
    ("demo", ("-ngl", "99", "-ot", r"blk\.(3|1[0-9])\.ffn_.*=CPU")),
    ("small", ("-ngl", "12", "-ot", "attn_[qk].weight=CPU")),
    ("small", ("-ngl", "99", "-ot", "^output.weight=CPU,ffn_down=CPU")),
    ("moe", ("-ngl", "99", "--cpu-moe")),
    ("moe", ("-ngl", "99", "--n-cpu-moe", "5")),
    ("moe", ("-ngl", "9", "--n-cpu-moe", "12")),
)
_LINE = re.compile(r"(\S+) model buffer size = +([\d.]+) MiB")


def main() -> int:
    different = 0
    print("| model | options | MiB on the device: llama.cpp | memfit | |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        paths = models() | {name: str(Path(folder) / f"{name}.gguf") for name in ("small", "moe")}
        write_model(Path(paths["small"]), SMALL, values="random")
        write_model(Path(paths["moe"]), MOE, values="random")
        for name, options in CASES:
            theirs, ours = llamacpp(paths[name], options), planned(paths[name], options)
            same = abs(theirs - ours) < 0.01
            different += not same
            verdict = "same" if same else "DIFFERENT"
            print(f"| {name} | `{' '.join(options)}` | {theirs:.2f} | {ours:.2f} | {verdict} |", flush=True)
    print(f"{len(CASES) - different} of {len(CASES)} the same")
    return int(different > 0)


def llamacpp(path: str, options: tuple[str, ...]) -> float:
    """MiB of weights on the device, as llama-completion's log has them."""
    with upstream_server() as (endpoint, _):
        command = [peers() / "llama-completion", "-m", path, "--rpc", endpoint, "-c", "512", "-n", "1"]
        command += ["-p", "x", "-no-cnv", "-lm", "none", "--no-repack", "-v", *options]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=True)
    lines = _LINE.findall((done.stderr + done.stdout).decode(errors="replace"))
    assert lines, "llama-completion says nothing of its buffers"
    return sum(float(size) for device, size in lines if device.startswith("RPC"))


def planned(path: str, options: tuple[str, ...]) -> float:
    with upstream_server() as (endpoint, _):
        said = ("plan", path, "--rpc", endpoint, "--ctx", "512", "--repack", "off", "--no-disk", *options)
        code, plan, error = memfit(*said)
    assert code == 0, error
    _, device = plan["tiers"]
    return float(device["weights_bytes"] / MIB)


if __name__ == "__main__":
    sys.exit(main())
