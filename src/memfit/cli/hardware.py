"""`memfit hardware`: what the probe found and what was measured, for people or as JSON.

Judges nothing; `doctor` does. `--calibrate` measures; without it only what is cached is shown.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from memfit.cli.json_output import json_option, write_json
from memfit.cli.speeds import brief_speeds, measuring_progress, print_speeds, printable, speeds_json
from memfit.engines.llamacpp.calibrate import LlamaCalibration, MachineSpeeds
from memfit.engines.llamacpp.gpus import with_engine_gpus
from memfit.errors import EngineError, EngineMissingError, WrongValueError
from memfit.hardware.disks import mount_of
from memfit.hardware.folders import cache_folder
from memfit.hardware.machine import Cpu, Disk, Gpu, Machine, Ram
from memfit.hardware.probe import probe
from memfit.planner.request import Budget
from memfit.units import format_bytes

__all__ = ["command"]


@click.command("hardware")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Measure this CPU, its GPUs, and the disks of the cache and of the current folder, in less than a "
    "minute. Plans use the figures from then on.",
)
@click.option(
    "--rpc",
    multiple=True,
    metavar="HOST:PORT",
    help="With --calibrate: measure also the device that `memfit rpc-server` serves there; repeatable.",
)
@json_option
@click.pass_context
def command(context: click.Context, calibrate: bool, rpc: tuple[str, ...], as_json: bool) -> None:
    """Show CPU, RAM, swap, GPUs and disks, as this process may use them."""
    machine = probe()
    if calibrate:
        _calibrate(machine, rpc, as_json)
        return
    machine = with_engine_gpus(machine, Budget())
    if rpc and context.get_parameter_source("rpc") is click.core.ParameterSource.COMMANDLINE:
        raise WrongValueError("rpc", ": a device elsewhere is only measured; add --calibrate")
    measured = _known(machine)
    if as_json:
        write_json({**asdict(machine), "speeds": speeds_json(measured)})
        return
    rows = [*_rows(machine), *(("speed", text) for text in brief_speeds(measured))]
    if sys.stdout.isatty():
        _print_table(rows)
    else:
        for label, text in rows:
            click.echo(f"{label:<8}{text}")


def _known(machine: Machine) -> MachineSpeeds:
    try:
        return LlamaCalibration(cpu_model=machine.cpu.model, say=lambda _: None).measured()
    except EngineMissingError:
        return MachineSpeeds(devices=(), disks={})  # this command also works without an engine


def _calibrate(machine: Machine, rpc: Sequence[str], as_json: bool) -> None:
    from memfit.cli.render import console, speaker
    from memfit.engines.llamacpp.lookup import find_devices

    if sys.platform != "linux":
        raise EngineError(f"memfit measures speeds on Linux only, and this is {sys.platform}; try WSL2")
    err = console(stderr=True)
    calibration = LlamaCalibration(cpu_model=machine.cpu.model, say=speaker(err))
    # A size, as other commands take it, says nothing here.
    budget = Budget(rpc=dict.fromkeys(text.partition("=")[0] for text in rpc))
    devices = find_devices(machine, budget, calibration)
    with measuring_progress(err) as on_progress:
        measured = calibration.measure_all(
            [None, *(device.engine_name for device in devices)],
            threads=machine.cpu.threads,
            folders=_folders(),
            on_progress=on_progress,
        )
    if as_json:
        write_json(speeds_json(measured))
    else:
        print_speeds(measured, console())


def _folders() -> list[Path]:
    """Where models are likely to lie, one for each disk."""
    folders = []
    with contextlib.suppress(OSError):  # the current folder was deleted
        folders.append(Path.cwd())
    with contextlib.suppress(OSError):  # a read-only home
        cache_folder().mkdir(parents=True, exist_ok=True)
        folders.append(cache_folder().resolve())
    return list({mount_of(folder): folder for folder in folders}.values())


def _print_table(rows: Sequence[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in rows:
        table.add_row(label, text)
    Console(highlight=False, markup=False, emoji=False).print(table)


def _rows(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "system", machine.system
    yield "CPU", _cpu(machine.cpu)
    yield "RAM", _ram(machine.ram)
    yield "swap", _swap(machine.ram)
    for gpu in machine.gpus:
        yield f"GPU {gpu.index}", _gpu(gpu)
    if machine.gpu_note or not machine.gpus:
        yield "GPU", machine.gpu_note or "none"
    for disk in machine.disks:
        yield "disk", _disk(disk)


def _cpu(cpu: Cpu) -> str:
    counts = f"cores {cpu.physical_cores}, usable threads {cpu.logical_cores}"
    return ", ".join([f"{cpu.model} ({cpu.architecture})", counts, *cpu.instruction_sets])


def _ram(ram: Ram) -> str:
    whole = f"limited by a cgroup; the machine has {format_bytes(ram.physical_bytes)}"
    parts = (
        f"{format_bytes(ram.total_bytes)}, {format_bytes(ram.available_bytes)} available",
        whole if ram.total_bytes < ram.physical_bytes else None,
        ram.type,
        ram.megatransfers_per_second and f"{ram.megatransfers_per_second} MT/s",
    )
    return ", ".join(part for part in parts if part)


def _swap(ram: Ram) -> str:
    if ram.swap_total_bytes == 0:
        return "none"
    return f"{format_bytes(ram.swap_total_bytes)}, {format_bytes(ram.swap_used_bytes)} in use"


def _gpu(gpu: Gpu) -> str:
    parts = (
        gpu.name,
        f"{format_bytes(gpu.total_bytes)}, {format_bytes(gpu.free_bytes)} free"
        if gpu.total_bytes
        else "memory unknown",
        gpu.is_integrated and "integrated: its memory is RAM",
        gpu.others_bytes and f"{format_bytes(gpu.others_bytes)} held by other programs",
        (gpu.driver or gpu.kernel_driver) and f"driver {gpu.driver or gpu.kernel_driver}",
        gpu.cuda and f"CUDA {gpu.cuda}",
        gpu.compute_capability and f"compute capability {gpu.compute_capability}",
        gpu.link,
    )
    return ", ".join(part for part in parts if part)


def _disk(disk: Disk) -> str:
    room = f"{format_bytes(disk.free_bytes)} free of {format_bytes(disk.total_bytes)}"
    kind = {True: ", rotational", False: ", solid state", None: ""}[disk.rotational]
    text = f"{disk.mount}, {room}, {disk.filesystem} on {disk.device}{kind}"
    return printable(text)  # a mount point is a file name
