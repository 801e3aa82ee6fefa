"""The machine a benchmark runs on, and whether something else keeps it busy."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

BUSY = 0.1  # share of the processors' time
CACHED_BYTES = 256 << 20  # weights smaller than this may stay in a processor's caches
_WATCHED = 0.5  # seconds
_IDLE_FIELDS = slice(3, 5)  # of /proc/stat's first line: idle, waiting for input and output


def processor() -> str:
    """The processor's name."""
    return next(_cpuinfo("model name"), platform.processor() or platform.machine())


def clock_mhz() -> float | None:
    """The mean of what the system says the processors' clocks are now; None where it does not tell."""
    clocks = [float(text) for text in _cpuinfo("cpu MHz")]
    return statistics.mean(clocks) if clocks else None


def available_memory() -> int | None:
    """Bytes that programs can have without others losing theirs; None where the system does not tell."""
    path = Path("/proc/meminfo")
    fields = dict(line.split(":") for line in path.read_text().splitlines()) if path.is_file() else {}
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def nvidia_driver() -> str | None:
    """The version of NVIDIA's kernel module; None where there is none."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0].partition(":")[2].strip() if path.is_file() else None


def _cpuinfo(field: str) -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith(field):
            yield line.partition(":")[2].strip()


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


def cache_warning(artifact: str, weight_bytes: int) -> str | None:
    """What to say of a small model on a processor."""
    if weight_bytes >= CACHED_BYTES:
        return None
    return (f"the weights of {artifact} take {weight_bytes / 1e6:.0f} MB and may stay in the processor's caches: "
            "GB/s says nothing about memory")
