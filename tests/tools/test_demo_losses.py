"""The demo model's training objectives against their definitions, element by element."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from demo_losses import (  # noqa: E402
    AdaptiveFactor,
    budget_loss,
    chunk_loss,
    chunk_sparsity,
    idle_loss,
    locality_loss,
)


@pytest.fixture
def logits():
    return torch.randn(2, 3, 16, 5, generator=torch.Generator().manual_seed(0))


def test_locality_loss_is_the_cross_entropy_of_neighbouring_tokens(logits):
    small = (logits / 100).double()
    own, following = (100 * small[:, :, :-1]).sigmoid(), (100 * small[:, :, 1:]).sigmoid()
    expected = -(following * own.log() + (1 - following) * (1 - own).log()).mean()
    torch.testing.assert_close(locality_loss(small), expected)


def test_locality_loss_is_lower_when_neighbours_agree(logits):
    assert locality_loss(logits[:, :, :1].expand_as(logits)) < 0.1 * locality_loss(logits)


def test_chunk_loss_is_the_expected_share_of_active_experts(logits):
    active = logits.clamp(min=0).double()
    probability = active / (active.sum(-1, keepdim=True) + 1e-5)
    shares = [1 - math.prod(1 + 1e-5 - p for p in probability[layer, row, start:start + 4, expert].tolist())
              for layer in range(2) for row in range(3) for start in range(0, 16, 4) for expert in range(5)]
    assert chunk_loss(logits.double(), 4).item() == pytest.approx(sum(shares) / len(shares), rel=1e-9)


@pytest.mark.parametrize("length", [1, 8])
def test_budget_loss_is_zero_at_the_target_and_pulls_towards_it(logits, length):
    half = torch.cat([logits.abs(), -logits.abs()], 2).requires_grad_()
    assert budget_loss(half, length, 0.5).item() == pytest.approx(0, abs=1e-6)
    expected = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    loss = budget_loss(half, length, 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert (half.grad >= 0).all() and half.grad.sum() > 0


def test_budget_loss_of_chunks_acts_on_their_highest_logits(logits):
    logits.requires_grad_()
    budget_loss(logits, 8, 0.1).backward()
    touched = (logits.grad != 0).unflatten(2, (-1, 8))
    assert (touched.sum(3) <= 1).all() and touched.any()


def test_idle_loss_wakes_idle_experts_only(logits):
    logits = logits.abs()
    logits[0, :, :, 2] *= -1
    logits.requires_grad_()
    loss = idle_loss(logits, 0.03)
    assert loss.item() == pytest.approx(math.log(0.03 / 1e-3) / 10, rel=1e-4)
    loss.backward()
    assert (logits.grad[0, :, :, 2] < 0).any()
    logits.grad[0, :, :, 2] = 0
    assert not logits.grad.any()


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
