"""The machine a benchmark runs on, and whether something else keeps it busy."""

from __future__ import annotations

import platform
import time
from pathlib import Path

BUSY = 0.1  # share of the processors' time
_WATCHED = 0.5  # seconds
_IDLE_FIELDS = slice(3, 5)  # of /proc/stat's first line: idle, waiting for input and output


def processor() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
                platform.processor() or platform.machine())


def busy_share() -> float | None:
    """Share of all processors' time that is in use (by others, as this call only sleeps), half a second long;
    None where the system does not tell."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None

    def ticks() -> list[int]:
        return [int(field) for field in path.read_text().splitlines()[0].split()[1:9]]  # the rest is counted twice

    before = ticks()
    time.sleep(_WATCHED)
    passed = [now - then for now, then in zip(ticks(), before)]
    return 1 - sum(passed[_IDLE_FIELDS]) / max(sum(passed), 1)


def busy_warning(share: float | None) -> str | None:
    """What to say of figures that were measured while ``share`` of the machine was busy; None below a tenth."""
    if (share or 0) <= BUSY:
        return None
    return (f"other programs kept {share:.0%} of the machine busy before the benchmark began: "
            "times are not to be trusted")
