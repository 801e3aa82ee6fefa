"""Synthetic checkpoints: reproducible, of the right shapes, with sane activations and sparse routing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import GQA, MLA

from blockffn_mlc.checkpoint import expected_shapes
from blockffn_mlc.config import PRESETS
from blockffn_mlc.errors import UserError
from blockffn_mlc.random_model import RandomCheckpoint, random_checkpoint
from blockffn_mlc.reference import Reference
from runtime_py.sparsity import chunk_level_sparsity, token_level_sparsity


@pytest.mark.parametrize("name", PRESETS)
def test_named_shapes(name):
    checkpoint = random_checkpoint(f"{name}@random")
    assert checkpoint.config == PRESETS[name] and checkpoint.folder is None
    assert checkpoint.expected == expected_shapes(PRESETS[name])
    tensor = "model.layers.3.mlp.router_proj.weight"
    weights = checkpoint.read(tensor)
    assert weights.dtype == np.float32 and weights.shape == checkpoint.expected[tensor]
    np.testing.assert_array_equal(weights, random_checkpoint(f"BlockFFN-{name.upper()}@random").read(tensor))


def test_unknown_name():
    with pytest.raises(UserError, match="huge"):
        random_checkpoint("huge@random")


def test_seed_and_name_decide_the_weights():
    first, again, other = (RandomCheckpoint(MLA, seed) for seed in ("0", "0", "1"))
    up = "model.layers.0.mlp.up_proj"
    np.testing.assert_array_equal(first.read(up), again.read(up))
    assert not np.any(first.read(up) == other.read(up))
    assert not np.any(first.read(up) == first.read(up.replace("0", "1")))


@pytest.mark.parametrize("start, stop", [(0, 1), (0, 64), (63, 65), (64, 128), (5, 300), (299, 300), (7, 7)])
def test_rows_equal_the_whole(start, stop):
    checkpoint = RandomCheckpoint(replace(MLA, vocab_size=300), "0")
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(checkpoint.read_rows(name, start, stop), checkpoint.read(name)[start:stop])


@pytest.mark.parametrize("base", [MLA, GQA])
def test_sane_activations_and_the_paper_s_sparsity(base):
    config = replace(base, hidden_size=256, num_hidden_layers=8, num_experts=64, vocab_size=512, attention_bias=True,
                     max_position_embeddings=2048)
    checkpoint = RandomCheckpoint(config, "0")
    weights = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.expected}
    with torch.no_grad():
        output = Reference(config, weights).forward(torch.from_numpy(checkpoint.token_stream[None, :2048]))
    active = (output.router_logits[:, 0] > 0).numpy()
    tls = np.array([token_level_sparsity(layer) for layer in active])
    cls = np.array([chunk_level_sparsity(layer, 8) for layer in active])
    assert 0.80 < tls.mean() < 0.82 and abs(tls - tls.mean()).max() < 0.05
    assert 0.70 < cls.mean() < 0.73 and abs(cls - cls.mean()).max() < 0.05
    few, between, many = np.histogram(active.mean((0, 2)), [0.09, 0.16, 0.18, 0.27])[0] / active.shape[1]
    assert 0.2 < few < 0.45 and between < 0.05 and many > 0.5
    per_layer = np.histogram(active.sum(-1), np.arange(0.5, 26, 3))[0]  # counts 1-3, 4-6, ..., 22-24
    peaks = [i for i in range(1, 7) if per_layer[i - 1] < per_layer[i] > per_layer[i + 1]]
    assert peaks == [2, 4]  # of 64 experts 7-9 and 13-15
    assert (active.mean(1) > 0).all()
    assert 0.01 < output.logits.std() < 10 and torch.isfinite(output.logits).all()
    assert 0.5 < output.last_hidden.square().mean().sqrt() < 2
