"""What people see of a snapshot, live or printed once: sections, each with a title, that fit any width."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from memfit.cli.render import memory_bar, memory_legend, plain, table
from memfit.errors import readable
from memfit.monitor.processes import ProcessGroup
from memfit.monitor.servers import ServerState, Tier
from memfit.monitor.snapshot import GpuState, MachineState, Snapshot
from memfit.units import format_bytes, format_rate

__all__ = ["sections"]

_MOST_CELLS = 60  # of a bar
_NARROW = 60  # columns, below which a process takes two lines instead of a row
# From so full on: the colour, and the same in words, for those who see none.
_LEVELS = (
    (1.0, "red", " · over the budget"),
    (0.9, "red", " · above 90 %"),
    (0.8, "yellow", " · above 80 %"),
)
_HELD_CELL, _PEAK_CELL, _FREE_CELL = "━", "╇", "─"
_OURS, _OTHERS, _FREE = ("cyan", "█"), ("yellow", "▒"), ("dim", "·")


def sections(snapshot: Snapshot) -> list[tuple[str, RenderableType]]:
    """Titles and what stands below them."""
    found: list[tuple[str, RenderableType]] = []
    if snapshot.machine:
        found.append(("this machine", _machine(snapshot.machine)))
        found.append(("memfit's processes", _processes(snapshot.processes)))
    return found + [(_server_title(one), _server(one)) for one in snapshot.servers]


class _Fit:
    """What is drawn once its width is known."""

    def __init__(self, draw: Callable[[int], RenderableType]) -> None:
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._draw(options.max_width)


def _machine(machine: MachineState) -> RenderableType:
    ram, cpu = machine.ram, machine.cpu
    taken, others = ram.total_bytes - ram.available_bytes, max(0.0, cpu.busy - cpu.memfit)
    rows: list[RenderableType] = [
        _line("RAM", f"{format_bytes(ram.available_bytes)} available of {format_bytes(ram.total_bytes)}"),
        _shares((taken - ram.others_bytes, ram.others_bytes), ram.total_bytes),
        _legend(format_bytes(ram.memfit_bytes), format_bytes(ram.others_bytes), "available"),
        _line("CPU", f"{cpu.busy:.1f} of {cpu.cpus} busy"),
        _shares((cpu.memfit, others), cpu.cpus),
        _legend(f"{cpu.memfit:.1f}", f"{others:.1f}", "idle"),
    ]
    for gpu in machine.gpus:
        rows += _gpu(gpu)
    return Group(*rows)


def _gpu(gpu: GpuState) -> list[RenderableType]:
    facts = [
        f"{format_bytes(gpu.total_bytes - gpu.used_bytes)} free of {format_bytes(gpu.total_bytes)}",
        "" if gpu.temperature_celsius is None else f"{gpu.temperature_celsius} °C",
        "" if gpu.power_watts is None else f"{gpu.power_watts:.0f} W",
    ]
    title = _line(f"GPU {gpu.index}", " · ".join(filter(None, facts)), plain(gpu.name))
    if gpu.memfit_bytes is None or gpu.others_bytes is None:
        unknown = "used, by whom the driver does not say: "
        return [
            title,
            _shares((0, gpu.used_bytes), gpu.total_bytes),
            Text.assemble((f"{_OTHERS[1]} ", _OTHERS[0]), f"{unknown}{format_bytes(gpu.used_bytes)}"),
        ]
    return [
        title,
        _shares((gpu.memfit_bytes, gpu.used_bytes - gpu.memfit_bytes), gpu.total_bytes),
        _legend(format_bytes(gpu.memfit_bytes), format_bytes(gpu.others_bytes), "free"),
    ]


def _line(name: str, *facts: str | Text) -> Text:
    shown = (Text(one) if isinstance(one, str) else one for one in facts)
    return Text("  ").join([Text(name, style="bold"), *shown])


def _shares(parts: tuple[float, float], whole: float) -> RenderableType:
    """memfit's part, and others'."""

    def draw(width: int) -> Text:
        cells, bar, edge = min(width, _MOST_CELLS), Text(), 0.0
        for part, (style, cell) in zip(parts, (_OURS, _OTHERS), strict=True):
            edge = min(whole, edge + max(0.0, part))
            bar.append(cell * (round(cells * edge / (whole or 1)) - len(bar)), style=style)
        return bar.append(_FREE[1] * (cells - len(bar)), style=_FREE[0])

    return _Fit(draw)


def _legend(ours: str, others: str, free: str) -> Text:
    parts = zip((_OURS, _OTHERS, _FREE), (f"memfit {ours}", f"others {others}", free), strict=True)
    return Text("  ").join([Text.assemble((f"{cell} ", style), said) for (style, cell), said in parts])


def _server_title(server: ServerState) -> str:
    names = [server.model, server.quantization, server.address]
    return readable(" · ".join(filter(None, names)), kept="")


def _server(server: ServerState) -> RenderableType:
    if server.error:
        return Text(readable(str(server.error).removeprefix(f"{server.address}: "), kept=""), style="red")
    facts = [server.state, server.engine, f"context {server.context}", _counted(server.parallel, "sequence")]
    facts += [f"KV cache {server.kv_type}"] if server.kv_type else []
    facts += [_counted(server.restarts, "restart")] if server.restarts else []
    rows: list[RenderableType] = [plain(" · ".join(facts))]
    for tier in server.tiers:
        rows += _tier(tier)
    return Group(*rows, *_speeds(server), *_requests(server))


def _tier(tier: Tier) -> list[RenderableType]:
    name = readable(tier.name.upper() if tier.kind in ("ram", "disk") else tier.name, kept="")
    if tier.kind == "disk":
        return [_line(name, f"{format_bytes(tier.weights_bytes)} of the weights are read for every pass")]
    _, style, said = next((one for one in _LEVELS if tier.level >= one[0]), (0.0, "green", ""))
    now = tier.total_bytes if tier.held_bytes is None else tier.held_bytes
    filled = f"{format_bytes(now)} of {format_bytes(tier.budget_bytes)} · {100 * tier.level:.0f} %{said}"
    held_bar = _Fit(lambda width: _held_bar(tier, style, min(width, _MOST_CELLS)))
    return [
        _line(name, Text(filled, style=style)),
        *([] if tier.held_bytes is None else [held_bar]),
        _measured(tier, style),
        _Fit(lambda width: memory_bar(tier.parts, _whole(tier), min(width, _MOST_CELLS))),
        memory_legend(tier.parts, tier.budget_bytes),
    ]


def _whole(tier: Tier) -> int:
    """What a bar's end stands for; by a stranger's word any of these may be the largest."""
    return max(
        tier.budget_bytes,
        sum(tier.parts.values()),
        tier.held_bytes or 0,
        tier.peak_bytes or 0,
        tier.total_bytes,
        1,
    )


def _held_bar(tier: Tier, style: str, cells: int) -> Text:
    """What is held now, and a mark at the peak."""
    held, peak = (round(cells * (size or 0) / _whole(tier)) for size in (tier.held_bytes, tier.peak_bytes))
    bar = Text(_HELD_CELL * held, style=style).append(_FREE_CELL * (cells - held), style="dim")
    if not peak:
        return bar
    return bar[: peak - 1].append(_PEAK_CELL, style=style).append(bar[peak:])


def _measured(tier: Tier, style: str) -> Text:
    found = Text()
    for label, cell, size in (("held", _HELD_CELL, tier.held_bytes), ("peak", _PEAK_CELL, tier.peak_bytes)):
        if size is not None:
            found.append(f"{cell} ", style=style).append(f"{label} {format_bytes(size)}  ")
    found.append("" if found else "nobody measures it  ")
    return found.append(f"predicted {format_bytes(tier.total_bytes)}")


def _speeds(server: ServerState) -> list[Text]:
    now, last = server.tokens_per_second or 0.0, server.answered
    answers = {
        "prompt": last.prompt_tokens_per_second,
        "generation": last.generation_tokens_per_second,
    }
    rows = [
        _line("generated now", f"{format_rate(now)}, all sequences together" if now else "nothing"),
        _line("predicted", _rates(server.predicted or {})),
    ]
    if last.answers:
        rows.insert(1, _line(f"last {_counted(last.answers, 'answer')}", _rates(answers)))
    return rows


def _rates(rates: Mapping[str, float | None]) -> str:
    return " · ".join(f"{name} {format_rate(rate)}" for name, rate in rates.items() if rate is not None)


def _requests(server: ServerState) -> list[Text]:
    last = server.answered
    cached = f"{server.cells_in_use} of {server.context} tokens in the KV cache"
    if last.answers:
        cached += (
            f" · {last.cached_tokens} of the last answers' {last.prompt_tokens} prompt tokens were there"
        )
    queue = f"{server.running} running · {server.waiting} waiting"
    return [_line("queue", queue), _line("cache", cached)]


def _processes(groups: Sequence[ProcessGroup]) -> RenderableType:
    if not groups:
        return Text("none runs; memfit serve MODEL or memfit run MODEL starts one", style="dim")
    return _Fit(lambda width: _rows(groups) if width >= _NARROW else _lines(groups))


def _rows(groups: Sequence[ProcessGroup]) -> RenderableType:
    shown = table(">PID", "command", "model", ">RAM", ">CPUs", ">age", ">processes", header_style="bold")
    for one in groups:
        names = plain(one.told.command), plain(_model(one))
        shown.add_row(str(one.pid), *names, *_figures(one), str(len(one.pids)))
    return shown


def _lines(groups: Sequence[ProcessGroup]) -> RenderableType:
    rows: list[RenderableType] = []
    for one in groups:
        rows.append(_line(one.told.command, plain(_model(one))))
        held, cpus, since = _figures(one)
        rows.append(Text(f"  {one.pid} · {held} · {cpus} CPUs · {since}"))
    return Group(*rows)


def _figures(group: ProcessGroup) -> tuple[str, str, str]:
    held = "not readable" if group.held_bytes is None else format_bytes(group.held_bytes)
    return held, f"{group.cpus:.2f}", _age(time.time() - group.started)


def _model(group: ProcessGroup) -> str:
    model = group.told.model or "-"
    return Path(model).name or model if model.startswith(("/", ".", "~")) else model


def _age(seconds: float) -> str:
    """`41 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{max(0, int(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
