"""Every variant of the configuration computes what the reference computes, and sparse equals dense."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import GQA, MLA
from compiled import compile_model, nmse, oracle, same_bits

from blockffn_mlc.random_model import RandomCheckpoint

VARIANTS = {
    "mla, router norm sum, bias, 130 experts": replace(
        MLA, norm_after_router="sum", norm_scale=2.0, attention_bias=True, num_experts=130, expert_size=8),
    "mla, router norm none, tied, one expert, odd sizes": replace(
        MLA, norm_after_router="none", tie_word_embeddings=True, num_experts=1, expert_size=40, q_lora_rank=21,
        kv_lora_rank=13, qk_nope_head_dim=5, qk_rope_head_dim=6, vocab_size=97),
    "mla, rms, large eps, linear rope scaling, one head": replace(
        MLA, rms_norm_eps=0.05, num_attention_heads=1, num_key_value_heads=1, rope_scaling_factor=4.0, rope_theta=500.0,
        vocab_size=45, num_hidden_layers=1),
    "gqa, router norm none, bias, 3 experts": replace(
        GQA, norm_after_router="none", attention_bias=True, num_experts=3, expert_size=24),
    "gqa, router norm sum, linear rope scaling, untied, one kv head": replace(
        GQA, norm_after_router="sum", hidden_size=96, num_attention_heads=3, num_key_value_heads=1,
        rope_scaling_factor=2.0, tie_word_embeddings=False, num_experts=20, expert_size=128),
    "gqa, rms, 1024 experts": replace(
        GQA, num_experts=1024, expert_size=8, hidden_size=32, num_hidden_layers=1),
    "gqa, rms, one expert, as many kv heads": replace(
        GQA, num_experts=1, num_attention_heads=2, num_key_value_heads=2, hidden_size=32, scale_emb=1.0,
        dim_model_base=1.0, scale_depth=1.0),
}


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
