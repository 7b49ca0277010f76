"""Disks with room for models: each mounted device once, with the disks of the current and the home folder.

Measures no speeds; network filesystems are listed only where the user stands on one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from memfit.hardware.machine import Disk

__all__ = ["is_rotational", "mount_of", "read_disks"]

_READ_ONLY_IMAGES = frozenset({"squashfs", "iso9660", "udf", "erofs"})


def read_disks() -> tuple[Disk, ...]:
    """Sorted by mount. A device mounted in several places is listed at the shortest of them."""
    found: dict[str, Disk] = {}
    for partition in sorted(_partitions(), key=lambda each: len(each.mountpoint)):
        # "overlay" and "tmpfs" are names of many filesystems.
        is_device = partition.device.startswith("/dev/")
        key = partition.device if is_device else partition.mountpoint
        if key in found:
            continue
        try:
            usage = psutil.disk_usage(partition.mountpoint)
        except OSError:
            continue  # no permission, or no medium in the drive
        found[key] = Disk(
            mount=partition.mountpoint,
            device=partition.device,
            filesystem=partition.fstype,
            total_bytes=usage.total,
            free_bytes=usage.free,
            rotational=is_rotational(partition.device),
        )
    return tuple(sorted(found.values(), key=lambda disk: disk.mount))


def _partitions() -> Iterator[Any]:
    here = {mount_of(folder) for folder in _user_folders()}
    for partition in psutil.disk_partitions(all=False):
        if partition.fstype not in _READ_ONLY_IMAGES and Path(partition.mountpoint).is_dir():
            yield partition
    # Containers stand on an overlay, which the list of real devices leaves out. Of several
    # mounts on one folder, the last is the one that is seen.
    everywhere = {each.mountpoint: each for each in psutil.disk_partitions(all=True)}
    yield from (everywhere[mount] for mount in here & everywhere.keys())


def _user_folders() -> Iterator[Path]:
    for find in (Path.cwd, Path.home):
        try:
            yield find().resolve()
        except (OSError, RuntimeError):
            continue  # the working directory was deleted, or nobody knows this user's home


def mount_of(folder: Path) -> str:
    """Where the filesystem of a resolved path begins; the path itself need not exist."""
    while not os.path.ismount(folder) and folder != folder.parent:
        folder = folder.parent
    return str(folder)


def is_rotational(device: str, root: Path = Path("/")) -> bool | None:
    """Whether the kernel says that a block device turns; None for what is no block device.

    A partition's folder in sysfs lies inside its disk's, and only a disk has a queue.
    """
    name = Path(device).resolve().name  # /dev/mapper/home is a link to /dev/dm-0
    folder = (root / "sys/class/block" / name).resolve()
    for above in (folder, folder.parent):
        try:
            return (above / "queue/rotational").read_text().strip() == "1"
        except OSError:
            continue
    return None
