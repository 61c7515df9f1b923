"""How much fits: a plan is made from sizes before anything runs, and obeyed."""

import os
from dataclasses import dataclass

import torch

from cutaway.errors import UsageError

_SHARE = 0.25
"""Of the free memory, unless told: other things run on the same machine."""
_CEILING = 2 << 30
"""More than this buys no speed on a processor."""


@dataclass(frozen=True)
class Plan:
    """How many units of work go through the model together."""

    at_once: int
    bytes_each: int
    limit: int

    def __repr__(self) -> str:
        return f"Plan({self.at_once} at once, {self.bytes_each / 1e6:.1f} MB each, limit {self.limit / 1e6:.0f} MB)"


def plan(bytes_each: int, wanted: int, device: torch.device, limit: int | None = None) -> Plan:
    """Return how many of ``wanted`` units of ``bytes_each`` fit in ``limit`` bytes (None: a quarter of what is free).

    UsageError when not even one fits, with what would.
    """
    allowed = min(int(free_bytes(device) * _SHARE), _CEILING) if limit is None else limit
    fits = allowed // max(bytes_each, 1)
    if fits < 1:
        raise UsageError(
            f"memory={allowed}: one circuit run of these prompts takes about {bytes_each} bytes;"
            " raise the limit, or use fewer prompts at a time or shorter ones"
        )
    return Plan(max(1, min(wanted, fits)), bytes_each, allowed)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of ``device``."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
