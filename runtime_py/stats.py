"""What a generation cost: tokens per second, time to the first token, peak memory."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Stats:
    """Times in seconds. The first token comes out of the prefill, so ``decode`` covers the others."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second."""
        return _rate(self.prompt_tokens, self.prefill_seconds)

    @property
    def decode_rate(self) -> float | None:
        """Tokens after the first, per second."""
        return _rate(self.generated_tokens - 1, self.decode_seconds)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures; rates are None where nothing was measured."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "prefill_tokens_per_s": self.prefill_rate,
            "decode_tokens_per_s": self.decode_rate,
            "time_to_first_token_s": self.time_to_first_token,
            "peak_memory_bytes": peak_memory(),
        }

    def __str__(self) -> str:
        rates = [f"{name} {count} tokens" + (f" at {rate:.1f} tokens/s" if rate else "")
                 for name, count, rate in (("prefill", self.prompt_tokens, self.prefill_rate),
                                           ("decode", self.generated_tokens, self.decode_rate))]
        return ", ".join([*rates, f"first token after {self.time_to_first_token * 1e3:.0f} ms",
                          f"peak memory {peak_memory() / 2**20:.0f} MiB"])


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes, mapped weights included."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held before exec
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # absent on Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count > 0 and seconds > 0 else None
