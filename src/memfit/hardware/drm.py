"""GPUs that Linux' own drivers describe, AMD's and Intel's, in /sys/class/drm.

What is not there is unknown: Intel's drivers say nothing of memory where it is RAM.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from memfit.hardware.machine import Gpu

__all__ = ["read_drm_gpus"]

_MAKERS = {"amdgpu": "AMD", "i915": "Intel", "xe": "Intel"}  # by driver
_GENERATIONS = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}  # of PCIe, by GT/s


def read_drm_gpus(first: int, folder: Path = Path("/sys/class/drm")) -> tuple[Gpu, ...]:
    """Numbered from `first` on, in the kernel's order; empty on other systems."""
    cards = sorted(folder.glob("card[0-9]*"), key=lambda one: (len(one.name), one.name))
    found: list[Gpu] = []
    for card in cards:
        facts = _facts(card / "device/uevent")  # a connector ("card0-DP-1") has none
        driver, pci_id = facts.get("DRIVER", ""), facts.get("PCI_SLOT_NAME")
        if driver in _MAKERS and pci_id:
            found.append(_gpu(first + len(found), card, driver, pci_id, facts.get("PCI_ID", "")))
    return tuple(found)


def _gpu(index: int, card: Path, driver: str, pci_id: str, model: str) -> Gpu:
    device = card / "device"
    total = _number(device / "mem_info_vram_total") or _number(card / "lmem_total_bytes") or 0
    used = _number(device / "mem_info_vram_used")
    if used is None:
        used = total - (_number(card / "lmem_avail_bytes") or 0)
    return Gpu(
        index=index,
        name=_text(device / "product_name") or f"{_MAKERS[driver]} GPU {model}".strip(),
        total_bytes=total,
        used_bytes=used,
        free_bytes=max(0, total - used),
        pci_id=pci_id.lower(),
        kernel_driver=driver,
        link=_link(device),
    )


def _link(device: Path) -> str | None:
    speed, width = _text(device / "max_link_speed"), _number(device / "max_link_width")
    generation = _GENERATIONS.get(speed.partition(" ")[0])  # "16.0 GT/s PCIe"
    return f"PCIe {generation}.0 x{width}" if generation and width else None


def _facts(uevent: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in _text(uevent).splitlines())
    return {name: value for name, _, value in pairs}


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return ""
