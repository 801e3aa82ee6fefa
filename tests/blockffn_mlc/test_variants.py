"""Every variant of the configuration computes what the reference computes, and sparse equals dense."""

import numpy as np
import pytest
from checkpoints import VARIANTS
from compiled import compile_model, nmse, oracle, same_bits

from blockffn_mlc.random_model import RandomCheckpoint


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(name):
    source = RandomCheckpoint(VARIANTS[name], name)
    model = compile_model(source, "q0f32")
    ids = np.random.default_rng(0).integers(0, model.vocab, 75)
    expected_logits, expected_scores = oracle(source, ids)
    logits, scores, _ = model.chunks(ids, [len(ids)])
    assert nmse(logits, expected_logits) <= 1e-9
    assert nmse(scores, expected_scores) <= 1e-9
    for other in (model.chunks(ids, [7, 1, 3])[:2], model.chunk(ids, 0, model.new_caches(), dense=True)):
        assert same_bits(other[0], logits) and same_bits(other[1], scores)
