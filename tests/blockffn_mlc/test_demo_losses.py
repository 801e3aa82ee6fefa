"""The demo model's training objectives against their definitions, element by element."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from demo_losses import (  # noqa: E402
    AdaptiveFactor,
    TargetFactor,
    chunk_loss,
    chunk_sparsity,
    locality_loss,
    usage_loss,
)


@pytest.fixture
def logits():
    return torch.randn(2, 3, 16, 5, generator=torch.Generator().manual_seed(0))


def test_locality_loss_is_the_cross_entropy_of_neighbouring_tokens(logits):
    logits = logits.double()
    total = 0.0
    for layer in logits:
        steep = 100 * layer / math.sqrt((layer**2).mean())
        target = 1 / (1 + (-steep[:, 1:]).exp())
        total += (target * (1 + (-steep[:, :-1]).exp()).log() + (1 - target) * (1 + steep[:, :-1].exp()).log()).mean()
    assert locality_loss(logits).item() == pytest.approx(total.item() / 2, rel=1e-9)


def test_locality_loss_does_not_depend_on_the_scale_of_the_logits(logits):
    torch.testing.assert_close(locality_loss(logits / 1000), locality_loss(logits), rtol=1e-4, atol=0)


def test_locality_loss_is_lower_when_neighbours_agree(logits):
    assert locality_loss(logits[:, :, :1].expand_as(logits)) < 0.1 * locality_loss(logits)


def test_chunk_loss_is_the_expected_share_of_active_experts(logits):
    active = logits.clamp(min=0).double()
    probability = active / (active.sum(-1, keepdim=True) + 1e-5)
    shares = [1 - math.prod(1 + 1e-5 - p for p in probability[layer, row, start:start + 4, expert].tolist())
              for layer in range(2) for row in range(3) for start in range(0, 16, 4) for expert in range(5)]
    assert chunk_loss(logits.double(), 4).item() == pytest.approx(sum(shares) / len(shares), rel=1e-9)


def test_usage_loss_is_zero_at_the_target_and_pulls_towards_it(logits):
    half = torch.cat([logits.abs(), -logits.abs()], 2)
    assert usage_loss(half, 0.5).item() == pytest.approx(0, abs=1e-6)
    half.requires_grad_()
    usage_loss(half, 0.2).backward()
    assert (half.grad >= 0).all() and half.grad.sum() > 0


def test_chunk_sparsity_counts_disjoint_windows():
    logits = -torch.ones(1, 1, 8, 2)
    logits[0, 0, 3, 0] = 1
    assert chunk_sparsity(logits, 4) == 0.75
    assert chunk_sparsity(logits, 8) == 0.5


def test_adaptive_factor_follows_the_loss():
    factor = AdaptiveFactor(1.0, window=2, stable=2, limit=1.1)
    values = []
    for loss in (4, 4, 2, 2, 2.002, 2.002, 20, 20):
        factor.update(loss)
        values.append(factor.value)
    assert values == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5125, 0.5125, 1.1])


def test_target_factor_grows_until_the_target_is_reached():
    factor = TargetFactor(1.0, target=0.6, window=2, limit=1.1)
    values = []
    for sparsity in (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9):
        factor.update(sparsity)
        values.append(factor.value)
    assert values == pytest.approx([1, 1.05, 1.05, 1.1, 1.1, 1.1, 1.1, 1.1 / 1.05])
