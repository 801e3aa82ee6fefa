"""Compiled models compute what the original implementation computed."""

import numpy as np
import pytest
from compiled import GOLDEN, GOLDEN_NAMES, golden_expected, golden_model, nmse, oracle, tree_around

from blockffn_mlc.checkpoint import open_checkpoint

# The oracle rounds weights and cached values to float16 as well. A value on the edge between two float16 numbers may
# fall to either side, 2^-11 away, which the layers behind it amplify.
HALF = 1e-7
HALF_TO_ORIGINAL = 1e-4  # what float16 costs in these random models


def one_prefill(model, ids):
    return model.chunks(ids, [len(ids)])[:2]


def chunks_of_7(model, ids):
    return model.chunks(ids, [7])[:2]


def token_by_token(model, ids):
    return model.chunks(ids, [1])[:2]


def trees(model, ids):
    """The sequence as accepted paths of trees: its tokens amid distractors, nodes in a random topological order."""
    rng = np.random.default_rng(7)
    caches, done, results = model.new_caches(), 0, []
    while done < len(ids):
        length = min(int(rng.integers(1, 7)), len(ids) - done)
        nodes, parents, path = tree_around(rng, ids[done:done + length], int(rng.integers(0, 30)), model.vocab)
        logits, scores = model.tree(nodes, parents, done, caches)
        results.append((logits[path], scores[:, path]))
        model.commit(path, done, caches)
        done += length
    logits, scores = zip(*results)
    return np.concatenate(logits), np.concatenate(scores, axis=1)


WAYS = [one_prefill, chunks_of_7, token_by_token, trees]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_float32_equals_the_original(name, way):
    expected = golden_expected(name)
    logits, scores = way(golden_model(name), expected["ids"])
    assert nmse(logits, expected["logits"]) <= 1e-9
    assert nmse(scores, expected["router_scores"]) <= 1e-9
    assert np.array_equal(scores != 0, expected["router_scores"] != 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_float16_equals_the_oracle_in_float16(name, way):
    ids = golden_expected(name)["ids"]
    expected_logits, expected_scores = oracle(open_checkpoint(GOLDEN / name), ids, "float16")
    logits, scores = way(golden_model(name, "q0f16"), ids)
    assert nmse(logits, expected_logits) <= HALF
    assert nmse(scores, expected_scores) <= HALF


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_float16_stays_close_to_the_original(name):
    expected = golden_expected(name)
    logits, _ = one_prefill(golden_model(name, "q0f16"), expected["ids"])
    assert nmse(logits, expected["logits"]) <= HALF_TO_ORIGINAL
