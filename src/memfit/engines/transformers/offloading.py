"""Layers that stay on the disk: whole ones are read ahead of the computation into a ring of memory, and while
one computes its parameters are views of it.

They are read from the checkpoint's own files where these hold them as they are computed with. What
transformers puts together while loading lies in a folder, where it saves it; what has another type is written
there once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import send_to_device

from memfit.engines.channel import Aborted
from memfit.engines.stream import Ring
from memfit.engines.transformers.reading import DTYPES, TYPES, read_tensor
from memfit.errors import EngineError
from memfit.hardware.direct_file import DirectFile, StreamError
from memfit.hardware.disk_speed import go_direct, own_memory
from memfit.headers.safetensors import Checkpoint, SafetensorsTensor, read_safetensors_header
from memfit.headers.stored_weights import QuantizedTensor
from memfit.memory.page_cache import drop_cached
from memfit.memory.streaming import PAGE_BYTES, Stretch, stretches

__all__ = ["Placeholder", "StreamedLayers", "layers_as_stored"]

_ALIGNMENT = 64  # of what is written here


def layers_as_stored(
    layers: Collection[str], checkpoint: Checkpoint, build: Callable[[], torch.nn.Module]
) -> set[str]:
    """Those of `layers` whose parameters a checkpoint holds by their names and shapes in the model that
    `build` makes; transformers puts the others together while loading, as it does quantized ones."""
    stored = {one.name: one.shape for one in checkpoint.tensors if not isinstance(one, QuantizedTensor)}
    with torch.device("meta"):
        model = build()
    return {
        layer
        for layer in layers
        if all(
            stored.get(f"{layer}.{name}") == tuple(value.shape)
            for name, value in model.get_submodule(layer).named_parameters()
        )
    }


class Placeholder:
    """What transformers takes for a slice of a file, as LazyTensor; of a parameter that stays there. It has
    the shape, and memory for a single element."""

    def __init__(self, tensor: SafetensorsTensor, dtype: torch.dtype) -> None:
        self._tensor, self._dtype = tensor, dtype

    def __getitem__(self, _: Any) -> torch.Tensor:
        return torch.zeros((), dtype=self._dtype).expand(self._tensor.shape)

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return self._tensor.type


@dataclass(frozen=True)
class _Parameter:
    """One parameter of a streamed layer."""

    module: torch.nn.Module  # that has it
    name: str  # there
    dtype: torch.dtype
    stored: SafetensorsTensor  # its `file_index` is of StreamedLayers


class StreamedLayers:
    """Reads the layers that stay on the disk, for each pass anew."""

    def __init__(
        self,
        model: Any,
        layers: Sequence[str],
        checkpoint: Checkpoint,
        *,
        folder: Path,
        ring_bytes: int,
        device: torch.device,
        stopped: Callable[[], bool],
    ) -> None:
        """`layers` in the order of computation, which is on `device`; `stopped` says that a request was
        cancelled.

        Raises:
            StreamError: a file cannot be opened, or the folder not be written.
            EngineError: a layer is larger than was planned.
        """
        self._device, self._stopped = device, stopped
        self._skipped = model._skip_keys_device_placement
        self._files = [DirectFile(path) for path in checkpoint.paths]
        sources = {one.name: one for one in checkpoint.tensors}
        sources |= self._saved(model)
        parts: list[list[Stretch[SafetensorsTensor]]] = []
        self._layers: list[list[_Parameter]] = []
        for name in layers:
            module = model.get_submodule(name)
            remove_hook_from_module(module, recurse=True)  # accelerate's
            found = [
                _parameter(module, one, sources[f"{name}.{one}"]) for one, _ in module.named_parameters()
            ]
            for one in found:
                if DTYPES[one.stored.type] != one.dtype:
                    found = self._write(found, folder / f"{name}.layer")
                    break
            self._layers.append(found)
            parts.append(stretches(one.stored for one in found))
        largest = max(sum(part.size_bytes for part in layer) for layer in parts)
        if largest > ring_bytes:
            raise EngineError(f"a layer on the disk takes {largest} bytes, the ring has {ring_bytes}")
        if device.type == "cpu":
            remove_hook_from_module(model, recurse=True)
        self._ring = Ring(self._files, parts, ring_bytes, stopped)
        self._starts = [_starts(found, part) for found, part in zip(self._layers, parts, strict=True)]
        # Kept, for what is made anew beside the tensors of a pass leaves holes between them: 40 MiB.
        self._absent = [[_empty(one) for one in found] for found in self._layers]
        self._views: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        for index, name in enumerate(layers):
            self._take_away(index)
            module = model.get_submodule(name)
            module.register_forward_pre_hook(
                lambda _, args, kwargs, index=index: self._bring(index, args, kwargs), with_kwargs=True
            )
            module.register_forward_hook(lambda *_, index=index: self._give_back(index))

    def _saved(self, model: torch.nn.Module) -> dict[str, SafetensorsTensor]:
        """What transformers has saved in its folder, as accelerate's hooks know it."""
        found: dict[str, SafetensorsTensor] = {}
        index: Mapping[str, Mapping[str, Any]] = {}
        for module in model.modules():
            weights = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
            index = index or (weights.dataset.index if weights is not None else {})
        for name, place in index.items():
            path = Path(place["safetensors_file"])
            (tensor,) = read_safetensors_header(path).tensors
            drop_cached([path])
            found[name] = replace(tensor, file_index=len(self._files))
            self._files.append(DirectFile(path))
        return found

    def _write(self, parameters: Sequence[_Parameter], path: Path) -> list[_Parameter]:
        """A layer's parameters as they are computed with, into a file of its own."""
        written, size = [], 0
        for one in parameters:
            elements = one.stored.elements
            stored = replace(
                one.stored,
                type=TYPES[one.dtype],
                size_bytes=elements * one.dtype.itemsize,
                offset_bytes=size,
                file_index=len(self._files),
            )
            written.append(replace(one, stored=stored))
            size += -(-stored.size_bytes // _ALIGNMENT) * _ALIGNMENT
        memory = own_memory(-(-size // PAGE_BYTES) * PAGE_BYTES)
        for one, new in zip(parameters, written, strict=True):
            _view(memory, new, new.stored.offset_bytes).copy_(
                read_tensor(self._files[one.stored.file_index], one.stored)
            )
        try:
            _write_direct(path, memory)
            self._files.append(DirectFile(path))
        except OSError as error:
            raise StreamError(f"cannot write {path}: {error.strerror}") from None
        return written

    def _bring(self, index: int, args: Any, kwargs: Any) -> Any:
        """A layer is about to compute."""
        start = self._ring.take(index) - self._ring.address
        if self._stopped():
            raise Aborted
        views = self._views.get((index, start))
        if views is None:
            memory, starts = self._ring.memory, self._starts[index]
            views = [
                torch.nn.Parameter(_view(memory, one, start + offset), requires_grad=False)
                for one, offset in zip(self._layers[index], starts, strict=True)
            ]
            self._views[index, start] = views
        for one, value in zip(self._layers[index], views, strict=True):
            one.module._parameters[one.name] = value.to(self._device)
        if self._device.type == "cpu":
            return None
        skipped = self._skipped
        return send_to_device(args, self._device), send_to_device(kwargs, self._device, skip_keys=skipped)

    def _give_back(self, index: int) -> None:
        self._take_away(index)
        self._ring.give_back()

    def _take_away(self, index: int) -> None:
        """Leave parameters without memory."""
        for one, absent in zip(self._layers[index], self._absent[index], strict=True):
            one.module._parameters[one.name] = absent


def _parameter(layer: torch.nn.Module, name: str, stored: SafetensorsTensor) -> _Parameter:
    prefix, _, last = name.rpartition(".")
    return _Parameter(layer.get_submodule(prefix), last, layer.get_parameter(name).dtype, stored)


def _empty(parameter: _Parameter) -> torch.nn.Parameter:
    shape = parameter.stored.shape
    return torch.nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device="meta"), requires_grad=False)


def _starts(parameters: Sequence[_Parameter], part: Sequence[Stretch[SafetensorsTensor]]) -> list[int]:
    """Where each of them lies within the layer's part of the ring."""
    places: dict[str, int] = {}
    begin = 0
    for stretch in part:
        for tensor in stretch.tensors:
            places[tensor.name] = begin + tensor.offset_bytes - stretch.start_bytes
        begin += stretch.size_bytes
    return [places[one.stored.name] for one in parameters]


def _view(memory: Any, parameter: _Parameter, start: int) -> torch.Tensor:
    stored = parameter.stored
    found = torch.frombuffer(memory, dtype=parameter.dtype, count=stored.elements, offset=start)
    return found.view(stored.shape)


def _write_direct(path: Path, memory: Any) -> None:
    """Past the page cache where the filesystem allows it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        direct, done, view = go_direct(file), 0, memoryview(memory)
        while done < len(memory):
            done += os.pwrite(file, view[done:], done)
        if not direct:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
