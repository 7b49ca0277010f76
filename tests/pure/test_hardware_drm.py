"""GPUs of Linux' own drivers, from files as /sys/class/drm has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from memfit.hardware.drm import read_drm_gpus
from memfit.hardware.machine import Gpu
from memfit.units import GIB


def _card(folder: Path, name: str, driver: str, pci_id: str, **files: str) -> None:
    """`files` lie in the device's folder; those that begin with "lmem" in the card's."""
    device = folder / name / "device"
    device.mkdir(parents=True)
    (device / "uevent").write_text(
        f"DRIVER={driver}\nPCI_CLASS=30000\nPCI_ID=1002:744C\nPCI_SLOT_NAME={pci_id}\n"
    )
    for file, text in files.items():
        (folder / name if file.startswith("lmem") else device).joinpath(file).write_text(text + "\n")


def test_a_card_of_amd(tmp_path: Path) -> None:
    _card(
        tmp_path,
        "card1",
        "amdgpu",
        "0000:03:00.0",
        mem_info_vram_total=str(24 * GIB),
        mem_info_vram_used=str(GIB),
        max_link_speed="16.0 GT/s PCIe",
        max_link_width="16",
    )
    (tmp_path / "card1-DP-1").mkdir()  # a connector
    (tmp_path / "renderD128").mkdir()
    assert read_drm_gpus(2, tmp_path) == (
        Gpu(
            index=2,
            name="AMD GPU 1002:744C",
            total_bytes=24 * GIB,
            used_bytes=GIB,
            free_bytes=23 * GIB,
            pci_id="0000:03:00.0",
            kernel_driver="amdgpu",
            link="PCIe 4.0 x16",
        ),
    )


def test_intels_say_what_they_know(tmp_path: Path) -> None:
    _card(tmp_path, "card0", "i915", "0000:00:02.0")
    _card(
        tmp_path,
        "card1",
        "i915",
        "0000:03:00.0",
        lmem_total_bytes=str(8 * GIB),
        lmem_avail_bytes=str(7 * GIB),
    )
    inside, card = read_drm_gpus(0, tmp_path)
    assert (inside.name, inside.total_bytes, inside.free_bytes, inside.link) == (
        "Intel GPU 1002:744C",
        0,
        0,
        None,
    )
    assert (card.index, card.total_bytes, card.free_bytes) == (1, 8 * GIB, 7 * GIB)


def test_its_own_name(tmp_path: Path) -> None:
    _card(tmp_path, "card0", "amdgpu", "0000:03:00.0", product_name="Radeon PRO W7900")
    (gpu,) = read_drm_gpus(0, tmp_path)
    assert gpu.name == "Radeon PRO W7900"


@pytest.mark.parametrize("driver", ["nvidia", "ast", "virtio-pci", ""])
def test_other_drivers_are_not_looked_at(driver: str, tmp_path: Path) -> None:
    _card(tmp_path, "card0", driver, "0000:03:00.0", mem_info_vram_total=str(GIB))
    assert read_drm_gpus(0, tmp_path) == ()


@pytest.mark.parametrize("text", ["", "-1", "12 MiB", "\x00", "9" * 400 + "x"])
def test_nonsense_is_unknown(text: str, tmp_path: Path) -> None:
    _card(
        tmp_path,
        "card0",
        "amdgpu",
        "0000:03:00.0",
        mem_info_vram_total=text,
        max_link_speed=text,
        max_link_width=text,
    )
    (gpu,) = read_drm_gpus(0, tmp_path)
    assert (gpu.total_bytes, gpu.used_bytes, gpu.free_bytes, gpu.link) == (0, 0, 0, None)


def test_another_system_has_none(tmp_path: Path) -> None:
    assert read_drm_gpus(0, tmp_path / "absent") == ()
