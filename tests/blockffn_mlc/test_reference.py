"""The PyTorch reference equals what the original implementation computed for two small random checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from compiled import GOLDEN, nmse

from blockffn_mlc.reference import Reference


@pytest.fixture(params=["mla_block", "gqa_block_linear"])
def golden(request):
    return Reference.load(GOLDEN / request.param), dict(np.load(GOLDEN / request.param / "expected.npz"))


@torch.no_grad()
def test_matches_the_original_implementation(golden):
    reference, expected = golden
    output = reference.forward(torch.from_numpy(expected["ids"]))
    assert nmse(output.logits[0], expected["logits"]) <= 1e-10
    assert nmse(output.router_scores[:, 0], expected["router_scores"]) <= 1e-10
    assert nmse(output.last_hidden[0], expected["last_hidden"]) <= 1e-10
    assert np.array_equal(output.router_logits[:, 0] > 0, expected["router_scores"] != 0)


@torch.no_grad()
def test_logits_do_not_depend_on_later_tokens_or_other_sequences(golden):
    reference, expected = golden
    ids = torch.from_numpy(expected["ids"])
    whole = reference.forward(torch.cat([ids, ids.flip(1)])).logits[0, :20]
    assert nmse(reference.forward(ids[:, :20]).logits[0], whole) <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("norm", ["sum", "none"])
def test_other_router_norms(norm):
    reference = Reference.load(GOLDEN / "mla_block")
    reference.config = replace(reference.config, norm_after_router=norm, norm_scale=2.0)
    output = reference.forward(torch.arange(16)[None])
    scores = output.router_logits.clamp(min=0)
    if norm == "sum":
        scores = scores / (scores.sum(-1, keepdim=True) * 2 + 1e-5)
    torch.testing.assert_close(output.router_scores, scores)
    assert torch.isfinite(output.logits).all()


@torch.no_grad()
def test_inactive_experts_contribute_nothing(golden):
    """Zeroing the weights of every expert that no token activates leaves the logits as they are."""
    reference, expected = golden
    ids = torch.from_numpy(expected["ids"])[:, :2]
    before = reference.forward(ids)
    silent = ~(before.router_logits > 0).any(2).any(1)
    assert silent.any()
    for layer in range(reference.config.num_hidden_layers):
        for kind in ("up", "down"):
            reference.tensors[f"model.layers.{layer}.mlp.{kind}_proj"][silent[layer]] = 0
    assert torch.equal(reference.forward(ids).logits, before.logits)


def test_every_tensor_receives_a_gradient():
    reference = Reference.load(GOLDEN / "mla_block")
    reference.dropout = 0.1
    for tensor in reference.tensors.values():
        tensor.requires_grad_()
    reference.forward(torch.arange(64)[None]).logits.square().mean().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in reference.tensors.values())
