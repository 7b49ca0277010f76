"""What of RAM or a device is left to other programs where no budget is given.

Imports nothing that probes: an RPC server, which has a budget of its own, asks here too.
"""

from __future__ import annotations

from memfit.units import MIB

__all__ = ["reserve_bytes"]

_LARGEST_RESERVE_BYTES = 512 * MIB
_RESERVE_SHARE = 16  # so a container or card of less than 8 GiB is left a smaller one, without a step


def reserve_bytes(total_bytes: int, free_bytes: int) -> int:
    """512 MiB, or a sixteenth of a small machine, container or card: 44 MiB of 700.

    Never more than half of what is free, so that something can be planned however full it is.
    """
    return min(_LARGEST_RESERVE_BYTES, total_bytes // _RESERVE_SHARE, free_bytes // 2)
