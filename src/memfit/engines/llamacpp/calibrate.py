"""Measures once per machine, and caches: memfit's own memory, the bytes that a GPU's context takes (lookup.py
reserves them), the speeds of kernels and disks.

These are what the oracle cannot say. memfit's own memory is measured with a model of a megabyte, written
here: it is simulated, then really loaded, and what the second run holds beyond the first is what every
worker holds. Kernel speeds come from the worker's bench (kernels.py), disk speeds from reading a file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import platform
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from memfit import __version__
from memfit.engines.calibration import CachedFigures, KeptAnswers, is_quiet, run_small_model
from memfit.engines.llamacpp.oracle import grammar_memory
from memfit.engines.llamacpp.process import LlamaWorker
from memfit.errors import EngineError, EngineMissingError
from memfit.hardware.disk_speed import DiskSpeed, measure_reads
from memfit.hardware.disks import mount_of
from memfit.hardware.folders import cache_folder
from memfit.hardware.machine import Gpu, is_remote
from memfit.hardware.nvidia import GpuBytes
from memfit.headers.model_spec import ModelSpec
from memfit.memory.process_memory import Baseline, ProcessMemory
from memfit.planner.speed import AttentionSpeed, DeviceSpeed, WeightSpeed, attention_key

__all__ = ["LlamaCalibration", "MachineSpeeds", "MeasuredDevice"]

_REMOTE_SECONDS = 600  # for which a remote device is taken to be the same
_BUSY_SECONDS = 60  # between two tries to measure a busy machine
_TRYING_SECONDS = 45.0  # after which a measurement that other programs spoiled is not repeated
# What models and their caches are made of.
_TYPES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("F16", "BF16", "F32", "IQ4_NL", "IQ4_XS", "MXFP4"),
)
_ATTENTION = tuple(attention_key(kind, head) for kind in ("F16", "Q8_0") for head in (64, 80, 96, 128, 256))


@dataclass(frozen=True, kw_only=True)
class MeasuredDevice:
    """The cached figures of one device. A type that the device cannot compute with has None."""

    name: str  # "cpu", "CUDA0", "192.168.1.7:50052"
    threads: int | None  # of the CPU
    weights: Mapping[str, Mapping[str, float] | None]  # each as WeightSpeed has it
    repacked: Mapping[str, Mapping[str, float] | None]  # of the CPU; None for a type that stays plain
    attention: Mapping[str, Mapping[str, float] | None]  # each as AttentionSpeed has it
    basics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class MachineSpeeds:
    """What is known of this machine's speed, for people to see."""

    devices: Sequence[MeasuredDevice]
    disks: Mapping[str, DiskSpeed]  # by where they are mounted


_FORMAT = 10  # of what is cached; counted up when measurements are added


class LlamaCalibration:
    """This machine's constants for this engine build; each is measured when first asked for."""

    def __init__(self, *, cpu_model: str, say: Callable[[str], None], path: Path | None = None) -> None:
        self._say = say
        self.engine_build = _engine_build()
        key = f"{__version__} {_FORMAT} {cpu_model} {platform.python_version()} {self.engine_build}"
        self._key = key
        self._cached = CachedFigures(path or cache_folder() / "calibration.json", key, say)
        self._values = self._cached.values

    def baseline(self, *, count_parent: bool) -> Baseline:
        """The processes' own memory; `count_parent` False leaves the caller's process out."""
        values = self._cached.once("baseline", "what memfit itself needs on this machine", _measure_baseline)
        return Baseline(
            parent=ProcessMemory(**values["parent"]) if count_parent else None,
            decode_bytes=values["decode_bytes"],
        )

    def grammar(self, spec: ModelSpec) -> ProcessMemory:
        """What a worker holds beyond its baseline for JSON schemas; measured once for each vocabulary."""
        # A header ends where its vocabulary's text makes it end; models of one family share it but for names.
        key = f"{spec.metadata.get('tokenizer.ggml.pre')} {spec.vocabulary} {spec.data_offset_bytes[0]}"
        told = "what JSON schemas take with this model's vocabulary"
        found = self._cached.once(key, told, lambda: vars(grammar_memory(spec)), part="grammars")
        return ProcessMemory(**found)

    def ram_speeds(
        self, types: Sequence[str], attention: Sequence[str], *, repack_modes: Sequence[bool], threads: int
    ) -> dict[bool, DeviceSpeed] | None:
        """Measured speeds of this CPU, for plain weights in RAM, and repacked ones if they are asked for.

        None where the machine is too busy to measure; that is tried again after a minute.
        """
        plain = self._speeds(None, types, attention, repack=False, threads=threads)
        if plain is None:
            return None
        speeds = {False: plain}
        if True in repack_modes:
            repacked = self._speeds(None, types, [], repack=True, threads=threads)
            if repacked is None:
                return None
            # What is not repacked stays plain.
            weights = {**plain["weights"], **{name: one for name, one in repacked["weights"].items() if one}}
            provisional = plain["is_provisional"] or repacked["is_provisional"]
            speeds[True] = {**plain, "weights": weights, "is_provisional": provisional}
        return {repack: _device_speed(one) for repack, one in speeds.items()}

    def device_speed(self, name: str, types: Sequence[str], attention: Sequence[str]) -> DeviceSpeed | None:
        """Measured speed of a device; None where it is too busy.

        A remote device is measured anew after ten minutes, since another machine may answer there.
        """
        speeds = self._speeds(name, types, attention, repack=False, threads=None)
        return None if speeds is None else _device_speed(speeds)

    def gpu_runtime_bytes(self, gpu: Gpu) -> int:
        """Bytes that the driver's context and the engine's kernels take on a GPU; once per driver."""
        key, told = f"{gpu.driver} {gpu.name}", f"what the driver itself takes of {gpu.name}"
        measure = partial(_measure_gpu_runtime, gpu, self._say)
        return int(self._cached.once(key, told, measure, part="gpu_runtime"))

    def answers(self, header: str) -> KeptAnswers:
        """The oracle's for a model with this header."""
        return KeptAnswers(cache_folder() / "oracle", f"{self._key} {header}")

    def doubt(self) -> None:
        """A run was far from what these speeds predicted."""
        self._cached.doubt()

    def measured(self) -> MachineSpeeds:
        """What is cached and still believed; measures nothing."""
        return _measured(self._values.get("speeds", {}), self._values.get("disks", {}))

    def measure_all(
        self,
        devices: Sequence[str | None],
        *,
        threads: int,
        folders: Sequence[Path],
        on_progress: Callable[[float, str], None],
    ) -> MachineSpeeds:
        """Measure devices (None is this CPU) and the disks of folders anew.

        It replaces what was known of them, once all of it is measured; before, nothing changes.

        Raises:
            EngineError: other programs keep the machine busy, or a device fails.
        """
        steps = [step for device in devices for step in _steps(device, threads)]
        parts = len(steps) + len(folders)
        speeds: dict[str, Any] = {}
        disks: dict[str, Any] = {}
        ends = time.monotonic() + _TRYING_SECONDS
        with LlamaWorker() as worker:
            for number, (what, key, request) in enumerate(steps):
                on_progress(number / parts, what)
                while (reply := worker.ask("kernels", **request))["speeds"] is None:
                    if time.monotonic() > ends:
                        raise EngineError(
                            f"other programs keep this machine busy, so {what} cannot be measured now; what "
                            "was measured before is kept; end what computes, and try again"
                        )
                _learn(speeds.setdefault(key, _nothing_known()), reply)
        for number, folder in enumerate(folders, start=len(steps)):
            on_progress(number / parts, f"reads from {mount_of(folder.resolve())}")
            disks.update(self._measure_disk(folder))
        self._values.setdefault("speeds", {}).update(speeds)
        self._values.setdefault("disks", {}).update(disks)
        self._cached.write()
        return _measured(speeds, disks)

    def _measure_disk(self, folder: Path) -> dict[str, Any]:
        """To be cached, by the disk's mount; empty where it cannot be measured."""
        mount = mount_of(folder.resolve())
        try:
            speed = measure_reads(folder)
        except OSError as error:
            self._say(f"reads from {mount} are not measured: {folder}: {error.strerror or error}")
            return {}
        # JSON has no numbers for keys.
        blocks = {str(block): rate for block, rate in speed.bytes_per_second.items()}
        return {mount: {"direct": speed.direct, "bytes_per_second": blocks}}

    def _speeds(
        self,
        device: str | None,
        types: Sequence[str],
        attention: Sequence[str],
        *,
        repack: bool,
        threads: int | None,
    ) -> dict[str, Any] | None:
        key = _speeds_key(device, threads, repack=repack)
        all_known = self._values.setdefault("speeds", {})
        for old in [one for one, values in all_known.items() if _is_old(one, values)]:
            del all_known[old]  # ports of workers that are long gone add up
        known: dict[str, Any] = all_known.get(key) or _nothing_known()
        kept: dict[str, Any] | None = None  # what there is in any case
        if known["weights"] and self._cached.is_old(known):
            types = [*{**known["weights"], **dict.fromkeys(types)}]
            attention = [*{**known["attention"], **dict.fromkeys(attention)}]
            kept, known = known, _nothing_known()
        missing: dict[str, Any] = {
            "types": [name for name in types if name not in known["weights"]],
            "attention": [name for name in attention if name not in known["attention"]],
            "basics": not known["basics"] and not repack,
        }
        if not any(missing.values()):
            return known
        if time.time() - self._values.get("busy_at", 0) < _BUSY_SECONDS and not is_quiet():
            return kept
        kinds = [*missing["types"], *(f"attention {name}" for name in missing["attention"])]
        what = ", ".join(kinds) or "basics"
        self._say(
            f"measuring the speed of {device or 'this CPU'}{' (repacked)' if repack else ''}: {what}; once"
        )
        with LlamaWorker(yields=device is not None) as worker:
            reply = worker.ask("kernels", device=device, threads=threads, repack=repack, **missing)
        if reply["speeds"] is None:
            instead = "what was measured before counts" if kept else "its speed is assumed"
            self._say(f"{reply['why']}; {instead} for now")
            self._values["busy_at"] = time.time()
            self._cached.write()
            return kept
        _learn(known, reply)
        if known["is_provisional"]:
            if kept:
                known["tried_at"] = time.time()
            self._say("other programs compute: these speeds are provisional, and will be measured again")
        all_known[key] = known
        self._cached.write()
        return known


def _nothing_known() -> dict[str, Any]:
    return {"weights": {}, "attention": {}, "basics": {}, "is_provisional": False, "measured_at": 0.0}


def _learn(known: dict[str, Any], reply: Mapping[str, Any]) -> None:
    for part, values in reply["speeds"].items():
        known[part].update(values)
    known["is_provisional"] |= not reply["is_quiet"]
    known["measured_at"] = known["measured_at"] or time.time()  # of the oldest: doubts are about all of them


def _speeds_key(device: str | None, threads: int | None, *, repack: bool) -> str:
    return f"{threads} {repack}" if device is None else device


def _is_old(device: str | None, values: dict[str, Any]) -> bool:
    """Whether another machine may answer by now."""
    remote = device is not None and is_remote(device)
    return remote and time.time() - values.get("measured_at", 0) > _REMOTE_SECONDS


def _steps(device: str | None, threads: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """A device's measurements, each short enough to be repeated: what it is, the cache's key, the request."""
    nothing: dict[str, Any] = {"types": [], "attention": [], "basics": False}
    for repack in (False, True) if device is None else (False,):
        what = f"{device or 'this CPU'}{' with repacked weights' if repack else ''}"
        key = _speeds_key(device, threads, repack=repack)
        where = {"device": device, "threads": threads if device is None else None, "repack": repack}
        requests = [{**nothing, "types": [name]} for name in _TYPES]
        if not repack:  # which changes weights only
            requests += [{**nothing, "attention": [name]} for name in _ATTENTION]
            requests.append({**nothing, "basics": True})
        for request in requests:
            yield what, key, {**where, **request}


def _measured(speeds: dict[str, Any], disks: dict[str, Any]) -> MachineSpeeds:
    devices = []
    for key, values in speeds.items():
        threads, _, repack = key.partition(" ")  # of the CPU only: other names hold no space
        name = None if repack else key
        if repack == str(True) or not any(values["weights"].values()) or _is_old(name, values):
            continue
        repacked = speeds.get(_speeds_key(None, int(threads), repack=True), {}) if repack else {}
        devices.append(
            MeasuredDevice(
                name=name or "cpu",
                threads=int(threads) if repack else None,
                weights=values["weights"],
                repacked=repacked.get("weights", {}),
                attention=values["attention"],
                basics=values["basics"],
            )
        )
    measured_disks = {}
    for mount, values in disks.items():
        blocks = {int(block): rate for block, rate in values["bytes_per_second"].items()}
        measured_disks[mount] = DiskSpeed(direct=values["direct"], bytes_per_second=blocks)
    return MachineSpeeds(devices=devices, disks=measured_disks)


def _device_speed(values: dict[str, Any]) -> DeviceSpeed:
    """Without what the device does not do."""
    return DeviceSpeed(
        weights={name: WeightSpeed(**one) for name, one in values["weights"].items() if one},
        attention={name: AttentionSpeed(**one) for name, one in values["attention"].items() if one},
        **values["basics"],
        basis="provisional" if values["is_provisional"] else "calibrated",
    )


def _engine_build() -> str:
    """Sizes and times of the compiled libraries: another build has other speeds and bytes."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EngineMissingError(
            "the llama.cpp engine is not installed; memfit doctor gives the command that installs it"
        )
    stats = [one.stat() for one in sorted((Path(spec.origin).parent / "lib").glob("*.*"))]
    named = " ".join(f"{one.st_size}.{one.st_mtime_ns}" for one in stats)
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _measure_baseline() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="memfit-") as folder:
        path = Path(folder) / "tiny.gguf"
        path.write_bytes(_tiny_model())
        return run_small_model("llamacpp", str(path), "the engine cannot run a tiny model")


def _measure_gpu_runtime(gpu: Gpu, say: Callable[[str], None]) -> int:
    """By the driver's list of processes, or by what is free less: WSL2, containers and other makers' drivers
    list none."""
    name = gpu.engine_name

    def free(observer: LlamaWorker) -> int:
        return int(observer.ask("device_memory", names=[name])["devices"][name][0])

    with LlamaWorker() as observer, LlamaWorker() as worker:
        before = free(observer)
        worker.ask("kernels", device=name, threads=None, repack=False, types=[], attention=[], basics=True)
        held = GpuBytes({gpu.name: gpu.pci_id})(worker.pid).get(gpu.name)
        if held is None:
            held = max(0, before - free(observer))
            say(f"{gpu.name}: its driver does not say what a process holds, so what was free before counts")
    return held


def _tiny_model() -> bytes:
    """A llama of zeros, with as many layers as usual since each takes memory: a GGUF file of a megabyte."""
    embedding, feed_forward, vocabulary, layers = 32, 32, 64, 32
    layer_shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("attn_norm", "ffn_norm"), (embedding,)),
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (embedding, embedding)),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (embedding, feed_forward)),
        "ffn_down": (feed_forward, embedding),
    }
    shapes = {
        "token_embd": (embedding, vocabulary),
        **{f"blk.{layer}.{part}": shape for layer in range(layers) for part, shape in layer_shapes.items()},
        "output_norm": (embedding,),
        "output": (embedding, vocabulary),
    }
    numbers = {
        "block_count": layers,
        "context_length": 256,
        "embedding_length": embedding,
        "feed_forward_length": feed_forward,
        "attention.head_count": 1,
        "vocab_size": vocabulary,
    }
    pairs = [_string("general.architecture") + struct.pack("<I", 8) + _string("llama")]
    pairs += [_string("tokenizer.ggml.model") + struct.pack("<I", 8) + _string("none")]
    pairs += [_string(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()]
    epsilon = _string("llama.attention.layer_norm_rms_epsilon")
    pairs.append(epsilon + struct.pack("<If", 6, 1e-5))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, shape in shapes.items():
        header += _string(f"{name}.weight") + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}QIQ", *shape, 0, offset)  # type 0: F32
        offset += 4 * math.prod(shape)  # a multiple of the alignment of 32 for these shapes
    return header + bytes(-len(header) % 32) + bytes(offset)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()
