"""GPU kernels of attention: latent queries, causal chunks and trees over the cache."""

import numpy as np
import pytest
from gpu_harness import EXACT, TILES, run
from harness import Out, nmse, normal, stored_matrix

from schedules import gpu, twins
from schedules.rope_table import rope_table

POSITIONS, SLOTS, PAST = 300, 200, 40
SHAPES = {  # heads, kv_heads, key_dim, value_offset, value_dim, width, v_dim
    "mla": (6, 1, 72, 0, 64, 72, 0),
    "mla, values projected": (14, 1, 72, 0, 64, 72, 40),
    "gqa": (4, 2, 32, 32, 32, 64, 0),
    "wide latent": (3, 1, 304, 0, 288, 304, 0),
    "odd heads": (3, 3, 6, 6, 6, 12, 0),
}


@pytest.mark.parametrize("weight_format", ["float32", "q4f32_1", "q4f16_1"])
@pytest.mark.parametrize("shape", [(2, 96, 32, 64, 64), (3, 45, 40, 6, 33)], ids=str)
def test_latent_query(rng, weight_format, shape):
    heads, inputs, nope, rope, latent = shape
    x, table = normal(rng, 20, inputs), rope_table(POSITIONS, rope, 10000.0)
    positions = rng.integers(0, POSITIONS, 20).astype("int32")
    q_up, packed_q_up = stored_matrix(rng, weight_format, TILES.output_tile, heads, nope + rope, inputs)
    k_up, packed_k_up = stored_matrix(rng, weight_format, TILES.output_tile, heads, latent, nope)
    expected = twins.latent_query(x, q_up, k_up, positions, table)
    func = gpu.latent_query(TILES, heads, inputs, nope, rope, latent, POSITIONS, weight_format)
    for n in (1, 3, 20):
        out = run(func, x[:n], packed_q_up, packed_k_up, positions[:n], table, Out((n, heads, latent + rope)))
        assert nmse(out, expected[:n]) < EXACT


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(rng, shape, dtype):
    """A causal chunk for even tokens, a tree with bits in both words for odd ones; unseen slots are NaN."""
    heads, kv_heads, key_dim, offset, value_dim, width, v_dim = SHAPES[shape]
    n, odd = 9, np.arange(9) % 2
    q, kv = normal(rng, n, heads, key_dim), normal(rng, SLOTS, kv_heads, width, dtype=dtype)
    visible = np.where(odd, PAST, PAST + 1 + np.arange(n)).astype("int32")
    ancestors = np.array([[1 | 1 << t | -(1 << 31), 1 << 3] if t % 2 else [0, 0] for t in range(n)], "int32")
    seen = twins.seen_slots(visible, ancestors, PAST, SLOTS)
    keys, values = kv[..., :key_dim].copy(), kv[..., offset:offset + value_dim].copy()
    kv[~seen.any(0)] = np.nan
    v_up, packed = stored_matrix(rng, dtype, TILES.output_tile, heads, v_dim, value_dim) if v_dim else (None, None)
    func = gpu.attention(TILES, heads, kv_heads, SLOTS, key_dim=key_dim, value_offset=offset, value_dim=value_dim,
                         width=width, scale=0.3, cache_dtype=dtype, v_dim=v_dim, weight_format=dtype)
    expected = twins.attention(q, keys, values, seen, 0.3, v_up)
    for first in (0, n):  # all tokens at once, and one alone
        rows = slice(first and n - 1, n)
        count = len(q[rows])
        out = run(func, q[rows], kv, visible[rows], ancestors[rows], PAST, *([packed] if v_dim else []),
                  Out((count, heads * (v_dim or value_dim))))
        assert nmse(out, expected[rows]) < EXACT
