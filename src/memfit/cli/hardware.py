"""`memfit hardware`: what the probe found, for people or as JSON. Judges nothing; `doctor` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

from memfit.hardware import probe
from memfit.hardware.machine import Cpu, Disk, Gpu, Machine, Ram
from memfit.units import format_bytes

__all__ = ["command"]


@click.command("hardware")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, sizes in bytes.")
def command(as_json: bool) -> None:
    """Show CPU, RAM, swap, GPUs and disks, as this process may use them."""
    machine = probe()
    if as_json:
        click.echo(json.dumps(asdict(machine), indent=2))
    elif sys.stdout.isatty():
        _print_table(machine)
    else:
        for label, text in _rows(machine):
            click.echo(f"{label:<8}{text}")


def _print_table(machine: Machine) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in _rows(machine):
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
        yield "GPU", machine.gpu_note or "no NVIDIA GPU"
    for disk in machine.disks:
        yield "disk", _disk(disk)


def _cpu(cpu: Cpu) -> str:
    counts = f"cores {cpu.physical_cores}, usable threads {cpu.logical_cores}"
    return ", ".join([f"{cpu.model} ({cpu.architecture})", counts, *cpu.instruction_sets])


def _ram(ram: Ram) -> str:
    parts = [f"{format_bytes(ram.total_bytes)}, {format_bytes(ram.available_bytes)} available"]
    if ram.total_bytes < ram.physical_bytes:
        parts.append(f"limited by a cgroup; the machine has {format_bytes(ram.physical_bytes)}")
    if ram.type:
        parts.append(ram.type)
    if ram.megatransfers_per_second:
        parts.append(f"{ram.megatransfers_per_second} MT/s")
    return ", ".join(parts)


def _swap(ram: Ram) -> str:
    if ram.swap_total_bytes == 0:
        return "none"
    return f"{format_bytes(ram.swap_total_bytes)}, {format_bytes(ram.swap_used_bytes)} in use"


def _gpu(gpu: Gpu) -> str:
    parts = [gpu.name, f"{format_bytes(gpu.total_bytes)}, {format_bytes(gpu.free_bytes)} free"]
    if gpu.others_bytes:
        parts.append(f"{format_bytes(gpu.others_bytes)} held by other programs")
    parts.append(f"driver {gpu.driver}")
    if gpu.cuda:
        parts.append(f"CUDA {gpu.cuda}")
    if gpu.compute_capability:
        parts.append(f"compute capability {gpu.compute_capability}")
    if gpu.link:
        parts.append(gpu.link)
    return ", ".join(parts)


def _disk(disk: Disk) -> str:
    room = f"{format_bytes(disk.free_bytes)} free of {format_bytes(disk.total_bytes)}"
    kind = {True: ", rotational", False: ", solid state", None: ""}[disk.rotational]
    text = f"{disk.mount}, {room}, {disk.filesystem} on {disk.device}{kind}"
    # Mount points are file names: they may hold control characters, or bytes that are no text.
    return "".join(character if character.isprintable() else "?" for character in text)
