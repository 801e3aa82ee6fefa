"""How sparse the experts are: active counts, TLS and CLS (section 2 of the BlockFFN paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOWS = (8, 32)


def active_experts(scores: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """Which experts contribute: bool [L, T, E] from router scores float32 [L, T, E].

    The router's norm may turn a score negative, so an expert is active when its score's magnitude
    exceeds ``threshold``; 0 counts every expert that the router selected.
    """
    return np.abs(scores) > threshold


def token_level_sparsity(active: np.ndarray) -> float:
    """TLS: share of inactive experts, averaged over all tokens (and layers) of bool [..., T, E]."""
    return 1.0 - float(active.mean())


def chunk_level_sparsity(active: np.ndarray, window: int) -> float | None:
    """CLS_L: share of experts inactive in all L tokens of a window, over disjoint windows of bool [..., T, E].

    Tokens after the last whole window are left out; None without a whole window.
    """
    *lead, tokens, experts = active.shape
    count = tokens // window
    if count == 0:
        return None
    union = active[..., :count * window, :].reshape(*lead, count, window, experts).any(axis=-2)
    return 1.0 - float(union.mean())


def union_share(layer_scores: Sequence[np.ndarray]) -> float:
    """Share of all experts that at least one token of a pass uses, from its router scores, float32 [T, E] per layer."""
    used = np.concatenate([*layer_scores], axis=1).any(axis=0)
    return np.count_nonzero(used) / len(used)


@dataclass(frozen=True)
class Sparsity:
    """Figures of one text, of all layers or of one."""

    mean_active: float
    min_active: int
    max_active: int
    tls: float
    cls: dict[int, float | None]

    @classmethod
    def measure(cls, active: np.ndarray, piece: int | None = None) -> Sparsity:
        """From bool [..., T, E]; ``piece``: tokens that were read together, where CLS windows may not be longer."""
        counts = active.sum(axis=-1)
        return cls(float(counts.mean()), int(counts.min()), int(counts.max()), token_level_sparsity(active),
                   {window: chunk_level_sparsity(active, window) if window <= (piece or window) else None
                    for window in WINDOWS})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; CLS values are None when the text is shorter than the window."""
        return {"mean_active": self.mean_active, "min_active": self.min_active, "max_active": self.max_active,
                "tls": self.tls} | {f"cls_{window}": value for window, value in self.cls.items()}
