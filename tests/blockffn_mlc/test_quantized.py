"""4-bit builds of whole models: exact arithmetic on the dequantised weights, and on activations rounded to codes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import MLA
from coded_reference import reference_for
from compiled import (
    GOLDEN,
    SLOTS,
    compile_model,
    golden_expected,
    golden_model,
    nmse,
    oracle,
    same_bits,
    tree_around,
)
from machine import skip_unless_it_can_run
from tokenizers import Tokenizer

from blockffn_mlc.checkpoint import open_checkpoint
from blockffn_mlc.random_model import RandomCheckpoint
from runtime_py.engine import perplexity, token_log_probs
from schedules import q4

DEMO = Path(__file__).parents[2] / "blockffn_mlc" / "demo"
PLAIN = [("mla_block", "q4f16_1"), ("gqa_block_linear", "q4f32_1")]
CODED = [("mla_block", "q4f16_1", "int8"), ("mla_block", "q4f16_1", "int8x2"),
         ("gqa_block_linear", "q4f16_1", "int8")]
EDGES = {"int8": 1e-6, "int8x2": 0.5}  # share of the rounding error that edges between codes may cause
ROUNDING = {"int8": 1e-2, "int8x2": 1e-5}  # NMSE of logits
DTYPE = {"q4f16_1": "float16", "q4f32_1": "float32"}  # of what is not quantised, the cache included
EXACT = {"q4f16_1": 1e-7, "q4f32_1": 1e-9}  # NMSE; a cached value may be on the edge between two float16 numbers


class Dequantised:
    """A checkpoint as a 4-bit build sees it: matrices quantised, the rest in the model's dtype."""

    def __init__(self, checkpoint, weight_format):
        self.checkpoint, self.weight_format = checkpoint, weight_format
        self.config, self.expected = checkpoint.config, checkpoint.expected

    def read(self, name):
        weight = self.checkpoint.read(name)
        if "norm" in name or "router" in name or name.endswith("bias"):
            return weight.astype(DTYPE[self.weight_format]).astype("float32")
        if name.endswith("kv_b_proj.weight"):  # absorbed: keys are multiplied from the other side
            c = self.config
            heads = weight.reshape(c.num_attention_heads, -1, c.kv_lora_rank)
            keys = self._round(heads[:, :c.qk_nope_head_dim].swapaxes(1, 2)).swapaxes(1, 2)
            return np.concatenate([keys, self._round(heads[:, c.qk_nope_head_dim:])], axis=1).reshape(weight.shape)
        return self._round(weight)

    def oracle(self, ids, mode):
        """Logits and router scores of a build with activations ``mode``."""
        return oracle(self, ids, reference=reference_for(mode, DTYPE[self.weight_format]))

    def _round(self, weight):
        return q4.dequantize(*q4.quantize(np.ascontiguousarray(weight), self.weight_format))


@pytest.mark.parametrize("name, weight_format", PLAIN)
def test_logits_equal_the_oracle_on_dequantised_weights(name, weight_format):
    ids = golden_expected(name)["ids"]
    source = Dequantised(open_checkpoint(GOLDEN / name), weight_format)
    expected_logits, expected_scores = source.oracle(ids, "f32")
    logits, scores, _ = golden_model(name, weight_format).chunks(ids, [64])
    assert nmse(logits, expected_logits) <= EXACT[weight_format]
    assert nmse(scores, expected_scores) <= EXACT[weight_format]


@pytest.mark.parametrize("name, weight_format, mode", [(*names, "f32") for names in PLAIN] + CODED)
def test_bits_do_not_depend_on_chunks_or_trees(name, weight_format, mode):
    model, ids = golden_model(name, weight_format, mode), golden_expected(name)["ids"]
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


def check_roundings(model, source, texts, mode):
    """In short texts few tokens meet (or attend to) a value on the edge between two codes or two cached numbers: the
    others are the oracle's. 128 times finer codes have 128 times as many edges."""
    errors, roundings = [], []
    for text in texts:
        exact, rounded = (source.oracle(text, kind)[0] for kind in ("f32", mode))
        errors += map(nmse, model.chunks(text, [6])[0], rounded)
        roundings += map(nmse, rounded, exact)
    assert np.median(errors) <= EDGES[mode] * np.median(roundings)


@pytest.mark.parametrize("name, weight_format, mode", CODED)
def test_activations_are_rounded_where_the_oracle_rounds_them(name, weight_format, mode):
    source = Dequantised(open_checkpoint(GOLDEN / name), weight_format)
    model = golden_model(name, weight_format, mode)
    check_roundings(model, source, golden_expected(name)["ids"].reshape(-1, 6), mode)


@pytest.mark.parametrize("changes", [
    dict(norm_after_router="sum", num_experts=3, expert_size=40, q_lora_rank=21, kv_lora_rank=13, qk_nope_head_dim=37,
         qk_rope_head_dim=6, attention_bias=True, tie_word_embeddings=True, vocab_size=97)], ids=["odd sizes"])
def test_variants_in_codes(changes):
    skip_unless_it_can_run("int8")
    checkpoint = RandomCheckpoint(replace(MLA, **changes), "odd")
    model = compile_model(checkpoint, "q4f16_1", "int8")
    ids = np.random.default_rng(0).integers(0, model.vocab, 48)
    check_roundings(model, Dequantised(checkpoint, "q4f16_1"), ids.reshape(-1, 6), "int8")
    logits, scores, _ = model.chunks(ids, [48])
    for other in (model.chunks(ids, [7, 1, 3])[:2], model.chunk(ids, 0, model.new_caches(), dense=True)):
        assert same_bits(other[0], logits) and same_bits(other[1], scores)


@pytest.mark.parametrize("name, weight_format, mode", CODED)
def test_codes_cost_what_rounding_costs(name, weight_format, mode):
    """Against float32 activations the build is about as far away as the oracle that rounds. Random weights amplify
    what a trained model does not."""
    ids = golden_expected(name)["ids"]
    source = Dequantised(open_checkpoint(GOLDEN / name), weight_format)
    logits = golden_model(name, weight_format, mode).chunks(ids, [64])[0]
    exact, rounded = (source.oracle(ids, kind)[0] for kind in ("f32", mode))
    assert 0 < nmse(logits, exact) <= 2 * nmse(rounded, exact) <= 2 * ROUNDING[mode]


@pytest.mark.parametrize("mode, limit", [("int8", 2e-3), ("int8x2", 1e-7)])
def test_codes_do_not_hurt_the_demo_model(mode, limit):
    """Logits and perplexity of held-out text, against float32 activations with the same weights."""
    skip_unless_it_can_run(mode)
    source = open_checkpoint(DEMO)
    model = compile_model(source, "q4f16_1", mode)
    ids = np.array(Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode((DEMO / "heldout.txt").read_text()).ids)
    texts = ids[:4 * SLOTS].reshape(4, SLOTS)
    logits = np.concatenate([model.chunks(text, [96])[0] for text in texts])
    exact = np.concatenate([Dequantised(source, "q4f16_1").oracle(text, "f32")[0] for text in texts])
    assert nmse(logits, exact) <= limit
    measured, expected = (perplexity(np.concatenate([token_log_probs(text_logits[:-1], text[1:]) for text_logits, text
                                                     in zip(all_logits.reshape(4, SLOTS, -1), texts)]))
                          for all_logits in (logits, exact))
    assert abs(measured / expected - 1) <= 0.005
