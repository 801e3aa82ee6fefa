"""The training objectives of the BlockFFN paper (arXiv 2507.08771, equations 4 to 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STEEPNESS = 100.0


def locality_loss(router_logits: Tensor) -> Tensor:
    """Activation locality: neighbouring tokens should agree on which experts they activate.

    Binary cross-entropy between the steep sigmoids of each token's router logits and of the next
    token's. ``router_logits`` is float32 [L, B, T, E]; returns a scalar, the mean over everything.
    """
    steep = STEEPNESS * router_logits
    return F.binary_cross_entropy_with_logits(steep[:, :, :-1], steep[:, :, 1:].sigmoid())


def chunk_loss(router_logits: Tensor, length: int) -> Tensor:
    """Chunk sparsification: the expected share of experts that a chunk of ``length`` tokens activates.

    A token's positive router logits, scaled to sum 1, count as probabilities p; an expert is active in a
    chunk with probability 1 - product of (1 - p). ``router_logits`` is float32 [L, B, T, E] with T a
    multiple of ``length``; returns a scalar, the mean over layers, chunks and experts.
    """
    log_inactive = torch.log1p(1e-5 - probabilities(router_logits)).unflatten(2, (-1, length)).sum(3)
    return 1 - log_inactive.exp().mean()


def budget_loss(router_logits: Tensor, length: int, target: float) -> Tensor:
    """How far the share of active experts in chunks of ``length`` tokens is from ``target``: KL(target || share).

    Not in the paper, whose losses alone hardly make activations last within the demo's short training. With
    ``length`` 1 it steers the sparsity of a token, with 8 that of eight consecutive ones. The share is the
    mean over everything, so experts and layers may differ. ``router_logits`` is float32 [L, B, T, E] with T a
    multiple of ``length``; returns a scalar.
    """
    share = active_shares(router_logits, length).mean()
    return target * (target / share).log() + (1 - target) * ((1 - target) / (1 - share)).log()


def idle_loss(router_logits: Tensor, floor: float) -> Tensor:
    """Mean over layers and experts of log(floor / share) where an expert's share of active tokens is below ``floor``.

    Not in the paper: it brings idle experts back. ``router_logits`` is float32 [L, B, T, E]; returns a scalar.
    """
    return F.relu((floor / active_shares(router_logits, 1)).log()).mean()


def active_shares(router_logits: Tensor, length: int) -> Tensor:
    """Share of chunks of ``length`` tokens in which each expert is active, float32 [L, E].

    The value is exact; the gradient is that of a sigmoid as wide as the expert's highest router logits of a chunk.
    """
    highest = router_logits.unflatten(2, (-1, length)).amax(3)
    width = highest.detach().abs().mean((1, 2), keepdim=True) + 1e-6
    soft = (4 * highest / width).sigmoid().mean((1, 2))
    hard = (highest > 0).float().mean((1, 2)).clamp(1e-3, 1 - 1e-3)
    return soft + (hard - soft).detach()


def probabilities(router_logits: Tensor) -> Tensor:
    """Positive router logits scaled to sum 1 over the experts."""
    active = F.relu(router_logits)
    return active / (active.sum(-1, keepdim=True) + 1e-5)


def chunk_sparsity(router_logits: Tensor, length: int) -> float:
    """CLS: share of experts inactive in all of ``length`` tokens, over disjoint windows of float32 [L, B, T, E]."""
    return 1 - (router_logits > 0).unflatten(2, (-1, length)).any(3).float().mean().item()


class AdaptiveFactor:
    """The weight of the chunk loss, adapted to how fast that loss falls.

    Constant for ``stable`` steps. Then, every ``window`` steps, it moves by gamma, the ratio of the loss's
    means over the last two windows: down while the loss falls, and up, by at least ``GAMMA_MIN``, once it rises;
    never above ``limit`` times the first value.
    """

    GAMMA_MIN = 1.025

    def __init__(self, start: float, window: int, stable: int, limit: float = 4.0) -> None:
        self.value, self.most = start, start * limit
        self.window, self.stable = window, stable
        self.steps, self.total, self.previous = 0, 0.0, 0.0

    def update(self, loss: float) -> None:
        """Take in one step's chunk loss."""
        self.steps += 1
        self.total += loss
        if self.steps % self.window:
            return
        mean, self.total = self.total / self.window, 0.0
        if self.steps > self.stable and self.previous:
            gamma = mean / self.previous
            self.value = min(self.most, self.value * (max(self.GAMMA_MIN, gamma) if gamma > 1 else gamma))
        self.previous = mean
