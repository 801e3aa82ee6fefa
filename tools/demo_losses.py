"""The training objectives of the BlockFFN paper (arXiv 2507.08771, equations 4 to 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STEEPNESS = 100.0


def locality_loss(router_logits: Tensor) -> Tensor:
    """Activation locality: neighbouring tokens should agree on which experts they activate.

    Binary cross-entropy between the steep sigmoids of each token's router logits and of the next
    token's, after scaling a layer's logits to root mean square 1: the router's norm makes the model
    indifferent to their scale, and a router would rather shrink them than agree with its neighbours.
    ``router_logits`` is float32 [L, B, T, E]; returns a scalar, the mean over everything.
    """
    steep = STEEPNESS * router_logits * torch.rsqrt(router_logits.square().mean((1, 2, 3), keepdim=True) + 1e-12)
    return F.binary_cross_entropy_with_logits(steep[:, :, :-1], steep[:, :, 1:].sigmoid())


def chunk_loss(router_logits: Tensor, length: int) -> Tensor:
    """Chunk sparsification: the expected share of experts that a chunk of ``length`` tokens activates.

    A token's positive router logits, scaled to sum 1, count as probabilities p; an expert is active in a
    chunk with probability 1 - product of (1 - p). ``router_logits`` is float32 [L, B, T, E] with T a
    multiple of ``length``; returns a scalar, the mean over layers, chunks and experts.
    """
    log_inactive = torch.log1p(1e-5 - probabilities(router_logits)).unflatten(2, (-1, length)).sum(3)
    return 1 - log_inactive.exp().mean()


def usage_loss(router_logits: Tensor, target: float) -> Tensor:
    """How far each expert's share of active tokens is from ``target``: Bernoulli divergence KL(target || share).

    Not in the paper: without it a model as small as the demo settles on the same few experts for every token,
    which is sparse but pointless. The share is exact; its gradient is that of a sigmoid as wide as the layer's
    router logits. ``router_logits`` is float32 [L, B, T, E]; returns a scalar, the mean over layers and experts.
    """
    width = router_logits.detach().square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6
    soft = (4 * router_logits / width).sigmoid().mean((1, 2))
    hard = (router_logits > 0).float().mean((1, 2))
    share = (soft + (hard - soft).detach()).clamp(1e-3, 1 - 1e-3)
    return (target * (target / share).log() + (1 - target) * ((1 - target) / (1 - share)).log()).mean()


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


class TargetFactor:
    """The weight of the locality loss, steered so that the chunk sparsity reaches ``target``.

    Every ``window`` steps it grows by 5% while the mean chunk sparsity of the window is below the target, and
    shrinks by 5% otherwise, between the first value and ``limit`` times it.
    """

    RATE = 1.05

    def __init__(self, start: float, target: float, window: int, limit: float = 20.0) -> None:
        self.value, self.least, self.most = start, start, start * limit
        self.target, self.window = target, window
        self.steps, self.total = 0, 0.0

    def update(self, sparsity: float) -> None:
        """Take in one step's chunk sparsity."""
        self.steps += 1
        self.total += sparsity
        if self.steps % self.window:
            return
        mean, self.total = self.total / self.window, 0.0
        factor = self.value * (self.RATE if mean < self.target else 1 / self.RATE)
        self.value = min(self.most, max(self.least, factor))
