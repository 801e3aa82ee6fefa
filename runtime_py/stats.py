"""What a generation cost: tokens per second, time to the first token, peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .sparsity import union_share

# Router scores are looked at behind the last pass or when so many tensors of them, some KB each, have come: on a device
# each takes an allocation, of which drivers have thousands.
_TENSORS_HELD = 1024


@dataclass
class Stats:
    """Times in seconds. The first token comes out of the prefill, so ``decode`` and the passes cover the others.

    ``drafted``: tokens that the drafter proposed; ``verified``: those that passes of the model were given, of which it
    accepted some: more is drafted than verified, to learn what would pay. ``accept_lengths``: the new tokens of every
    pass, plain ones included. ``draft`` (deciding what to draft, drafting it, learning from what came of it) and
    ``verify`` (the library's work: the model's passes, plain ones included, choosing tokens with its kernel, and
    keeping what was accepted) are parts of ``decode``.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    drafted: int = 0
    verified: int = 0
    accept_lengths: list[int] = field(default_factory=list)
    _shares: list[float] = field(default_factory=list, repr=False)
    _unseen_scores: list[Sequence[np.ndarray]] = field(default_factory=list, repr=False)
    _unseen_limit: int = field(default=0, repr=False)

    @property
    def passes(self) -> int:
        return len(self.accept_lengths)

    @property
    def accepted(self) -> int:
        """Drafted tokens that became text."""
        return sum(self.accept_lengths) - self.passes

    @property
    def mean_accept_length(self) -> float | None:
        """New tokens per pass, the bonus token included."""
        return _mean(self.accept_lengths)

    @property
    def union_shares(self) -> list[float]:
        """For every pass that verified a tree, the share of experts that at least one node used."""
        self._look()
        return self._shares

    @property
    def union_share(self) -> float | None:
        return _mean(self.union_shares)

    def add_scores(self, drafts: int, layer_scores: Sequence[np.ndarray]) -> None:
        """Count a pass that verified a tree of so many ``drafts`` and a root: its router scores, float32 [n, E] per
        layer."""
        self.verified += drafts
        if not self._unseen_scores:
            self._unseen_limit = _TENSORS_HELD // len(layer_scores)
        self._unseen_scores.append(layer_scores)
        if len(self._unseen_scores) >= self._unseen_limit:
            self._look()

    def _look(self) -> None:
        self._shares.extend(map(union_share, self._unseen_scores))
        self._unseen_scores.clear()

    @property
    def overhead_seconds(self) -> float:
        """The rest of ``decode``: choosing tokens without a kernel, and turning them into text."""
        return self.decode_seconds - self.draft_seconds - self.verify_seconds

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
            "passes": self.passes,
            "drafted_tokens": self.drafted,
            "verified_tokens": self.verified,
            "accepted_tokens": self.accepted,
            "mean_accept_length": self.mean_accept_length,
            "union_share": self.union_share,
            "draft_s": self.draft_seconds,
            "verify_s": self.verify_seconds,
            "overhead_s": self.overhead_seconds,
            "peak_memory_bytes": peak_memory(),
        }

    def __str__(self) -> str:
        rates = [f"{name} {count} tokens" + (f" at {rate:.1f} tokens/s" if rate else "")
                 for name, count, rate in (("prefill", self.prompt_tokens, self.prefill_rate),
                                           ("decode", self.generated_tokens, self.decode_rate))]
        parts = [*rates, f"first token after {self.time_to_first_token * 1e3:.0f} ms",
                 f"peak memory {peak_memory() / 2**20:.0f} MiB"]
        return ", ".join(parts) + (f"\n{self._speculation()}" if self.drafted and self.passes else "")

    def _speculation(self) -> str:
        parts = {"draft": self.draft_seconds, "verify": self.verify_seconds, "overhead": self.overhead_seconds}
        shares = ", ".join(f"{name} {seconds / self.decode_seconds:.0%}" for name, seconds in parts.items())
        union = f", {self.union_share:.1%} of the experts in a pass over drafts" if self.verified else ""
        return (f"drafted {self.drafted} tokens, verified {self.verified}, accepted {self.accepted}, "
                f"{self.mean_accept_length:.2f} new tokens per pass{union}; {shares} of the time")


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


def _mean(values: list[int] | list[float]) -> float | None:
    return sum(values) / len(values) if values else None
