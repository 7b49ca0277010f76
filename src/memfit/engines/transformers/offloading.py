"""Modules that stay on the disk: read for each pass, past the page cache, while the one before computes.

transformers saves them in a folder as they will be computed with, and accelerate's hooks ask for them by
name; only what they ask is replaced here, since accelerate maps the files and leaves them in the page cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from memfit.engines.transformers.reading import read_tensor
from memfit.hardware.direct_file import DirectFile
from memfit.headers.safetensors import SafetensorsTensor, read_safetensors_header
from memfit.memory.page_cache import drop_cached

__all__ = ["StreamedWeights", "stream_offloaded"]


def stream_offloaded(model: torch.nn.Module) -> None:
    """Let a dispatched model's hooks take what is on the disk from here."""
    found: StreamedWeights | None = None
    for module in model.modules():
        weights = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if weights is None:
            continue
        # One loader behind all hooks, each with the prefix of its module's name.
        loader = weights.dataset
        if loader.index and not isinstance(loader, StreamedWeights):
            if found is None:
                found = StreamedWeights(loader.index, loader.state_dict)
            weights.dataset = found


class StreamedWeights(Mapping[str, torch.Tensor]):
    """Tensors by name, each read anew when it is asked for, and those that came next last time beside it."""

    def __init__(self, index: Mapping[str, Mapping[str, Any]], in_ram: Mapping[str, torch.Tensor]) -> None:
        """`index` is accelerate's: name → file, and name in the file. `in_ram` lies there beside GPUs."""
        self._in_ram = in_ram
        self._tensors: dict[str, tuple[DirectFile, SafetensorsTensor]] = {}
        paths = []
        for name, place in index.items():
            path = Path(place["safetensors_file"])
            header = read_safetensors_header(path)
            held = {one.name: one for one in header.tensors}
            self._tensors[name] = (DirectFile(path), held[place["weight_name"]])
            paths.append(path)
        drop_cached(paths)
        # No more is read in advance than the largest takes.
        self._ahead_bytes = max((one.size_bytes for _, one in self._tensors.values()), default=0)
        self._next: dict[str, str] = {}  # which tensor was asked for after which
        self._last: str | None = None
        self._newest = ""  # of those that are being read
        self._reading: dict[str, Future[torch.Tensor]] = {}
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memfit-stream")

    def __getitem__(self, name: str) -> torch.Tensor:
        """Raises StreamError where it cannot be read."""
        if name not in self._tensors:
            return self._in_ram[name]
        if self._last is not None:
            self._next[self._last] = name
        self._last = name
        future = self._reading.pop(name, None)
        if future is None:  # not what was expected: what was read ahead is of no use
            self._reading.clear()
            future = self._reader.submit(self._read, name)
            self._newest = name
        self._read_ahead(name)
        return future.result()

    def __iter__(self) -> Iterator[str]:
        return chain(self._tensors, self._in_ram)

    def __len__(self) -> int:
        return len(self._tensors) + len(self._in_ram)

    def _read(self, name: str) -> torch.Tensor:
        return read_tensor(*self._tensors[name])

    def _read_ahead(self, name: str) -> None:
        """Go on behind the newest one, in the order of the last pass."""
        ahead = sum(self._tensors[one][1].size_bytes for one in self._reading)
        while (coming := self._next.get(self._newest)) and coming != name and coming not in self._reading:
            ahead += self._tensors[coming][1].size_bytes
            if ahead > self._ahead_bytes:
                return
            self._reading[coming] = self._reader.submit(self._read, coming)
            self._newest = coming
