"""Router scores with a chosen union of experts."""

from __future__ import annotations

import numpy as np

TOKENS_PER_EXPERT = 0.2  # share of a pass's tokens that use an expert of the union, as in published models (TLS 80%)


def union_size(share: float, experts: int) -> int:
    """Experts in a union of ``share`` of them."""
    return round(share * experts)


def scores_with_union(rng: np.random.Generator, tokens: int, experts: int, share: float) -> np.ndarray:
    """Random scores float32 [tokens, experts] that are non-zero for ``union_size`` experts, each used by the same
    number of tokens whatever ``share`` is: a fifth of them, at least one. So the work is proportional to ``share``."""
    scores = np.zeros((tokens, experts), np.float32)
    users = max(1, round(TOKENS_PER_EXPERT * tokens))
    for expert in rng.choice(experts, union_size(share, experts), replace=False):
        scores[rng.choice(tokens, users, replace=False), expert] = rng.uniform(0.5, 1.5, users)
    return scores
