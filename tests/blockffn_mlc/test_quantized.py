"""4-bit builds of whole models: exact arithmetic on the dequantised weights, and bitwise invariance."""

import numpy as np
import pytest
from compiled import GOLDEN, GOLDEN_NAMES, golden_expected, golden_model, nmse, oracle, same_bits, tree_around

from blockffn_mlc.checkpoint import open_checkpoint
from schedules import q4

FORMATS = ("q4f16_1", "q4f32_1")
MODEL_DTYPE = {"q4f16_1": "float16", "q4f32_1": "float32"}


class Dequantised:
    """A checkpoint as a 4-bit build sees it: matrices quantised, the rest in the model's dtype."""

    def __init__(self, checkpoint, weight_format):
        self.checkpoint, self.weight_format = checkpoint, weight_format
        self.config, self.expected = checkpoint.config, checkpoint.expected

    def read(self, name):
        weight = self.checkpoint.read(name)
        if "norm" in name or "router" in name or name.endswith("bias"):
            return weight.astype(MODEL_DTYPE[self.weight_format]).astype("float32")
        if name.endswith("kv_b_proj.weight"):  # absorbed: keys are multiplied from the other side
            c = self.config
            heads = weight.reshape(c.num_attention_heads, -1, c.kv_lora_rank)
            keys = self._round(heads[:, :c.qk_nope_head_dim].swapaxes(1, 2)).swapaxes(1, 2)
            return np.concatenate([keys, self._round(heads[:, c.qk_nope_head_dim:])], axis=1).reshape(weight.shape)
        return self._round(weight)

    def _round(self, weight):
        return q4.dequantize(*q4.quantize(np.ascontiguousarray(weight), self.weight_format))


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_logits_equal_the_oracle_on_dequantised_weights(name, weight_format):
    ids = golden_expected(name)["ids"]
    source = Dequantised(open_checkpoint(GOLDEN / name), weight_format)
    expected_logits, expected_scores = oracle(source, ids, "float32", half_cache=True)
    logits, scores, _ = golden_model(name, weight_format).chunks(ids, [64])
    assert nmse(logits, expected_logits) <= 1e-7
    assert nmse(scores, expected_scores) <= 1e-7


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_bits_do_not_depend_on_chunks_or_trees(name, weight_format):
    model, ids = golden_model(name, weight_format), golden_expected(name)["ids"]
    logits, scores, _ = model.chunks(ids, [64])
    for sizes in ([1], [2], [3], [7], [8], [9, 31]):
        other_logits, other_scores, _ = model.chunks(ids, sizes)
        assert same_bits(other_logits, logits) and same_bits(other_scores, scores), sizes
    _, _, caches = model.chunks(ids[:20], [20])
    nodes, parents, path = tree_around(np.random.default_rng(0), ids[20:30], 30, model.vocab)
    tree_logits, _ = model.tree(nodes, parents, 20, caches)
    assert same_bits(tree_logits[path], logits[20:30])
    dense = model.chunk(ids, 0, model.new_caches(), dense=True)[0]
    assert same_bits(dense, logits)
