"""Attention kernel: causal chunks and trees over the cache."""

from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from harness import DTYPES, EXACT, MAX_TOKENS, TOKENS, Out, check_rows, nmse, normal, run, same_bits, stored_matrix

from schedules import activations, cpu, twins
from schedules.tiles import MAX_TREE_NODES

SLOTS, PAST = 200, 40
SHAPES = {  # heads, kv_heads, key_dim, value_offset, value_dim, width
    "mla": (2, 1, 72, 0, 64, 72),
    "odd mla": (3, 1, 51, 0, 45, 51),
    "wide latent": (1, 1, 304, 0, 288, 304),
    "gqa": (4, 2, 32, 32, 32, 64),
    "odd heads": (3, 3, 6, 6, 6, 12),
    "ragged tiles": (14, 1, 72, 0, 64, 72),
}


class Case:
    """The kernel of a shape with random queries and cache."""

    def __init__(self, target, rng, shape, dtype, **tiles):
        self.target, self.scale = target, 0.3
        self.heads, kv_heads, self.key_dim, offset, self.value_dim, width = SHAPES[shape]
        self.kernel = partial(cpu.attention, replace(target.tiles, **tiles), self.heads, kv_heads, SLOTS,
                              key_dim=self.key_dim, value_offset=offset, value_dim=self.value_dim, width=width,
                              scale=self.scale, cache_dtype=dtype)
        self.func, self.v_up, self.out_dim = self.kernel(), [], self.value_dim
        self.q = normal(rng, MAX_TOKENS, self.heads, self.key_dim)
        self.kv = normal(rng, SLOTS, kv_heads, width, dtype=dtype)
        self.keys = self.kv[..., :self.key_dim].copy()
        self.values = self.kv[..., offset:offset + self.value_dim].copy()

    def __call__(self, n, visible, ancestors, past):
        return run(self.func, self.target, self.q[:n], self.kv, visible[:n].astype("int32"),
                   ancestors[:n], past, *self.v_up, Out((n, self.heads * self.out_dim)))

    def with_v_up(self, packed, v_dim, weight_format, mode):
        """The same case with the value projection ``packed`` behind it."""
        other = copy(self)
        other.func = self.kernel(v_dim=v_dim, weight_format=weight_format, activations=mode)
        other.v_up, other.out_dim = [packed], v_dim
        return other

    def expected(self, n, visible, ancestors, past):
        seen = twins.seen_slots(visible[:n], ancestors[:n], past, SLOTS)
        return twins.attention(self.q[:n], self.keys, self.values, seen, self.scale)

    def forget(self, seen):
        """NaN in every slot that no token sees."""
        self.kv[~seen] = np.nan


@pytest.fixture(params=[(shape, dtype) for shape in SHAPES for dtype in DTYPES], ids="-".join)
def case(request, target, rng):
    return Case(target, rng, *request.param)


@pytest.mark.parametrize("shape, v_dim", [("odd mla", 33)])
def test_value_projection(kind, rng, shape, v_dim):
    """v_up of each head's values: the fused kernel equals its parts, and they equal the equations."""
    target, weight_format, mode = kind
    plain = Case(target, rng, shape, "float16")
    heads, latent = plain.heads, plain.value_dim
    w, packed = stored_matrix(rng, weight_format, target.tiles.output_tile, heads, v_dim, latent)
    case = plain.with_v_up(packed, v_dim, weight_format, mode)
    visible, ancestors = PAST + 1 + np.arange(MAX_TOKENS), no_ancestors(MAX_TOKENS)
    mix = plain(MAX_TOKENS, visible, ancestors, PAST).reshape(MAX_TOKENS, heads, latent)
    linear = cpu.linear(target.tiles, latent, v_dim, weight_format, mode)
    parts = np.concatenate([run(linear, target, activations.encode(mix[:, head], mode), packed[head],
                                Out((MAX_TOKENS, v_dim))) for head in range(heads)], axis=1)
    check_rows(lambda n: case(n, visible, ancestors, PAST), parts, tolerance=0.0)
    if mode == "f32":
        seen = twins.seen_slots(visible, ancestors, PAST, SLOTS)
        assert nmse(parts, twins.attention(plain.q, plain.keys, plain.values, seen, plain.scale, w)) <= EXACT


def no_ancestors(n):
    return np.zeros((n, 2), "int32")


def mask_words(parents):
    """Ancestor masks int32 [n, 2] of a tree; ``parents[t]`` < t, or -1 for a root."""
    masks = []
    for t, parent in enumerate(parents):
        masks.append(1 << t | (masks[parent] if parent >= 0 else 0))
    return np.array(masks, np.uint64).view(np.int32).reshape(-1, 2)


def random_parents(rng, n):
    return [int(rng.integers(-1, t)) if t else -1 for t in range(n)]


def test_causal(case):
    visible = PAST + 1 + np.arange(MAX_TOKENS)
    ancestors = no_ancestors(MAX_TOKENS)
    case.forget(np.arange(SLOTS) < PAST + MAX_TOKENS)
    check_rows(lambda n: case(n, visible, ancestors, PAST), case.expected(MAX_TOKENS, visible, ancestors, PAST))


def test_any_visible_length(case, rng):
    visible = rng.integers(1, SLOTS + 1, MAX_TOKENS)
    visible[:3] = 1, SLOTS, 2
    ancestors = no_ancestors(MAX_TOKENS)
    check_rows(lambda n: case(n, visible, ancestors, 0), case.expected(MAX_TOKENS, visible, ancestors, 0))


@pytest.mark.parametrize("past, prefix", [(0, 0), (PAST, PAST), (PAST, 3)])
def test_tree(case, rng, past, prefix):
    parents = random_parents(rng, MAX_TREE_NODES)
    ancestors, visible = mask_words(parents), np.full(MAX_TREE_NODES, prefix)
    case.forget(np.arange(SLOTS) < past + MAX_TREE_NODES)
    whole = case(MAX_TREE_NODES, visible, ancestors, past)
    assert nmse(whole, case.expected(MAX_TREE_NODES, visible, ancestors, past)) <= EXACT
    for n in TOKENS:
        if n <= MAX_TREE_NODES:
            assert same_bits(case(n, visible, ancestors, past), whole[:n]), n


def test_a_token_reads_only_what_it_sees(case):
    """Two branches: NaN in one leaves the other as it is."""
    ancestors = mask_words([-1, 0, 0, 1, 2])
    visible = np.full(5, PAST)
    clean = case(5, visible, ancestors, PAST)
    case.kv[PAST + 1] = np.nan
    poisoned = case(5, visible, ancestors, PAST)
    assert same_bits(poisoned[[0, 2, 4]], clean[[0, 2, 4]])
    assert np.isnan(poisoned[[1, 3]]).all()


def test_chain_equals_causal(case):
    """A slot counts the same whether it is visible or an ancestor: all 64 bits, including the sign bits."""
    causal = case(MAX_TREE_NODES, PAST + 1 + np.arange(MAX_TREE_NODES), no_ancestors(MAX_TREE_NODES), PAST)
    chain = case(MAX_TREE_NODES, np.full(MAX_TREE_NODES, PAST), mask_words(range(-1, MAX_TREE_NODES - 1)), PAST)
    assert same_bits(chain, causal)


@pytest.mark.parametrize("gain", [-300.0, 0.0, 300.0])
def test_sharp_and_flat_distributions(target, rng, gain):
    """Scores in the thousands, or all equal: the maximum keeps exp in range. A score's own rounding,
    a relative 2^-24 of thousands, bounds the accuracy."""
    case = Case(target, rng, "gqa", "float32")
    case.q *= np.float32(gain)
    visible = np.full(MAX_TOKENS, SLOTS)
    ancestors = no_ancestors(MAX_TOKENS)
    assert nmse(case(MAX_TOKENS, visible, ancestors, 0), case.expected(MAX_TOKENS, visible, ancestors, 0)) <= 1e-7


@pytest.mark.parametrize("tiles", [{"score_tile": (1, 4)}, {"score_tile": (3, 4)}, {"score_tile": (5, 2)},
                                   {"value_tile": (1, 1)}, {"value_tile": (3, 5)}], ids=str)
def test_register_tiles_change_no_bit(target, tiles):
    visible, ancestors = PAST + 1 + np.arange(MAX_TOKENS), no_ancestors(MAX_TOKENS)
    usual, other = (Case(target, np.random.default_rng(0), "ragged tiles", "float16", **kind)(
        MAX_TOKENS, visible, ancestors, PAST) for kind in ({}, tiles))
    assert same_bits(usual, other)
