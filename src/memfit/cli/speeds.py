"""Measured speeds for people and as JSON, and the progress of measuring them. Measures nothing itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memfit.engines.llamacpp.calibrate import MachineSpeeds, MeasuredDevice
from memfit.hardware.disk_speed import DiskSpeed
from memfit.units import format_bytes

if TYPE_CHECKING:  # a single line needs no pictures
    from rich.console import Console
    from rich.table import Table

__all__ = ["brief_speeds", "measuring_progress", "print_speeds", "printable", "speeds_json"]

_NO = "-"  # a device does not do it, or a type stays plain
_Rates = Mapping[str, Mapping[str, float] | None]


def speeds_json(measured: MachineSpeeds) -> dict[str, Any]:
    """Whole numbers, but for times."""
    return {
        "devices": [_device_json(device) for device in measured.devices],
        "disks": [
            {
                "mount": mount,
                "direct": disk.direct,
                "reads": [
                    {"block_bytes": block, "bytes_per_second": round(rate)}
                    for block, rate in disk.bytes_per_second.items()
                ],
            }
            for mount, disk in measured.disks.items()
        ],
    }


def _device_json(device: MeasuredDevice) -> dict[str, Any]:
    return {
        "name": device.name,
        "threads": device.threads,
        "weights": _rates_json(device.weights),
        "repacked_weights": _rates_json(device.repacked),
        "attention": _rates_json(device.attention),
        **{
            key: value if key.endswith("_seconds") else round(value)
            for key, value in device.basics.items()
            if device.threads is None or not key.startswith("split")  # nobody enters RAM
        },
    }


def _rates_json(rates: _Rates) -> dict[str, Any]:
    """Names that say which pass is meant: one token is generation, 512 are a prompt."""
    names = {
        "bytes_per_second": "generation_bytes_per_second",
        "operations_per_second": "prompt_operations_per_second",
        "generation": "generation_operations_per_second",
        "prompt": "prompt_operations_per_second",
    }
    return {
        key: one and {names.get(name, name): round(value) for name, value in one.items()}
        for key, one in rates.items()
    }


def brief_speeds(measured: MachineSpeeds) -> Iterator[str]:
    """One line for each device and disk."""
    for device in measured.devices:
        rates = [one for one in (*device.weights.values(), *device.repacked.values()) if one]
        most = max(one["bytes_per_second"] for one in rates)
        operations = max(one["operations_per_second"] for one in rates)
        yield (
            f"{_title(device)}: generation up to {_bytes(most)} of weights, prompts up to "
            f"{_operations(operations)} ({len(device.weights)} types measured)"
        )
    for mount, disk in measured.disks.items():
        yield _disk(mount, disk)


def print_speeds(measured: MachineSpeeds, out: Console) -> None:
    for device in measured.devices:
        out.print(_title(device), style="bold")
        out.print(_weights_table(device))
        out.print(_attention_table(device))
        basics = device.basics
        out.print(
            f"activations {_bytes(basics['activation_bytes_per_second'])} · a node of the graph "
            f"{1e6 * basics['node_seconds']:.1f} µs"
        )
        if device.threads is None:
            out.print(
                f"entering it {1e6 * basics['split_seconds']:.0f} µs and "
                f"{_bytes(basics['split_bytes_per_second'])}"
                + (
                    f" · weights {_bytes(basics[sent])}"
                    if (sent := "sent_bytes_per_second") in basics
                    else ""
                )
            )
        out.print()
    for mount, disk in measured.disks.items():
        out.print(_disk(mount, disk), markup=False)


def _weights_table(device: MeasuredDevice) -> Table:
    from memfit.cli.render import table

    passes = (">1 token", ">512 tokens")
    repacked = (f"{name}, repacked" for name in passes if device.repacked)
    shown = table("weights", *passes, *repacked, no_wrap=True, header_style="dim")
    for name, plain in device.weights.items():
        both = [plain, device.repacked.get(name)] if device.repacked else [plain]
        shown.add_row(name, *(cell for one in both for cell in _weight_cells(one)))
    return shown


def _weight_cells(one: Mapping[str, float] | None) -> tuple[str, str]:
    if one is None:
        return _NO, _NO
    return _bytes(one["bytes_per_second"]), _operations(one["operations_per_second"])


def _attention_table(device: MeasuredDevice) -> Table:
    from memfit.cli.render import table

    shown = table("attention: KV/head", ">1 token", ">512 tokens", no_wrap=True, header_style="dim")
    for name, one in device.attention.items():
        shown.add_row(name, *(_operations(one[kind]) if one else _NO for kind in ("generation", "prompt")))
    return shown


def _title(device: MeasuredDevice) -> str:
    if device.threads is None:
        return device.name
    return f"CPU with {device.threads} thread{'s' * (device.threads > 1)}"


def _disk(mount: str, disk: DiskSpeed) -> str:
    rates = ", ".join(
        f"{_bytes(rate)} in blocks of {format_bytes(block)}" for block, rate in disk.bytes_per_second.items()
    )
    return f"reads from {printable(mount)}: {rates}" + ("" if disk.direct else "; through the page cache")


def printable(text: str) -> str:
    """Text with file names in it, which may hold control characters, or bytes that are no text."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _bytes(rate: float) -> str:
    return f"{format_bytes(round(rate))}/s"


def _operations(rate: float) -> str:
    return f"{rate / 1e9:.1f} Gop/s"


@contextlib.contextmanager
def measuring_progress(out: Console) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, elsewhere a line for each thing that is measured."""
    if not out.is_terminal:
        said = set()

        def say(_: float, what: str) -> None:
            if what not in said:
                said.add(what)
                out.print(f"memfit: measuring {what}", markup=False)

        yield say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("measuring {task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    # A thread that refreshes would run on a core that is being measured.
    with Progress(*columns, console=out, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda done, what: progress.update(task, completed=done, description=what, refresh=True)
