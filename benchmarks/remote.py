"""A 64 GB split model on a server, planned from its headers alone.

    python benchmarks/remote.py

The server is tests/hub_server.py on loopback; the model has the shapes of Qwen2.5-72B at Q6_K and a
vocabulary with text. Checked: `memfit plan` takes less than 3 s and reads less than 10 MB, the first time,
and every byte count equals that of the same files on disk.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from shapes import QWEN25_72B
from subjects import memfit
from synthetic import write_header

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from hub_server import HubServer, Sparse

SPLIT_BYTES = 8_000_000_000
BUDGET = ("--machine", "rtx3060-12gb", "--vram", "11.5GiB", "--ram", "60GiB")
ROUNDS = 5


def main() -> int:
    seconds, sizes = [], []
    with tempfile.TemporaryDirectory(prefix="memfit-remote-") as folder, HubServer() as hub:
        paths = write_header(Path(folder) / "big.gguf", QWEN25_72B, words=True, split_bytes=SPLIT_BYTES)
        hub.add_repo("org/big-GGUF", {path.name: described(path) for path in paths})
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": folder, "XDG_CACHE_HOME": folder}
        memfit("plan", "demo")  # what is measured once per machine is not what is measured here
        _, local, error = memfit("plan", str(paths[0]), *BUDGET)
        if not local:
            sys.exit(error)
        for _ in range(ROUNDS):
            for header_only in Path(folder).glob("memfit/headers/*/*"):
                header_only.unlink()
            hub.bytes_sent.clear()
            started = time.perf_counter()
            _, remote, error = memfit("plan", "hf:org/big-GGUF", *BUDGET)
            seconds.append(time.perf_counter() - started)
            sizes.append(sum(hub.bytes_sent.values()))
            if not remote:
                sys.exit(error)
            for ours, theirs in zip(counts(remote), counts(local), strict=True):
                if ours != theirs:
                    sys.exit(f"remote {ours}, on disk {theirs}")
        started = time.perf_counter()
        hub.bytes_sent.clear()
        memfit("plan", "hf:org/big-GGUF", *BUDGET)
        again, read_again = time.perf_counter() - started, sum(hub.bytes_sent.values())
    print("| files | model GB | planned in s | MB read | again s | MB read again |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {len(paths)} | {QWEN25_72B.data_bytes / 1e9:.2f} | {min(seconds):.2f} to {max(seconds):.2f} | "
        f"{max(sizes) / 1e6:.2f} | {again:.2f} | {read_again / 1e6:.3f} |"
    )
    return int(max(seconds) > 3 or max(sizes) > 10e6)


def counts(plan: dict) -> list:
    """What must be equal. A process's own memory is a few pages more or less each time, also on disk."""
    tiers = [
        {key: size for key, size in tier.items() if key not in ("overhead_bytes", "total_bytes")}
        for tier in plan["tiers"]
    ]
    return [*tiers, *(plan[key] for key in ("overrides", "layers", "context", "kv_type", "ubatch"))]


def described(path: Path) -> Sparse:
    """A file whose header ends within 16 MiB, and of which the rest is zeros."""
    with path.open("rb") as file:
        return Sparse(prefix=file.read(16 << 20), size_bytes=path.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
