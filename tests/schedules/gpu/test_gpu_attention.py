"""GPU kernels of attention: latent queries, causal chunks and trees over the cache."""

import numpy as np
import pytest
from gpu_harness import EXACT, by_family, run, token_counts
from harness import Out, nmse, normal, stored_matrix

from schedules import gpu, twins
from schedules.rope_table import rope_table
from schedules.tiles import GPU_TILES

POSITIONS, SLOTS, PAST = 300, 200, 40
SHAPES = {  # heads, kv_heads, key_dim, value_offset, value_dim, width, v_dim
    "mla": (6, 1, 72, 0, 64, 72, 0),
    "mla, values projected": (14, 1, 72, 0, 64, 72, 40),
    "gqa": (4, 2, 32, 32, 32, 64, 0),
    "wide latent": (3, 1, 304, 0, 288, 304, 0),
    "odd heads": (3, 3, 6, 6, 6, 12, 0),
}


QUERIES = [(2, 96, 32, 64, 64), (3, 45, 40, 6, 33)]  # heads, inputs, nope, rope, latent


@pytest.mark.parametrize("family, weight_format, shape", [
    *by_family([(name, shape) for name in gpu.FORMATS for shape in QUERIES]), ("mali", "q4f32_1", QUERIES[0])], ids=str)
def test_latent_query(rng, family, weight_format, shape):
    tiles, counts = GPU_TILES[family], token_counts(family)
    heads, inputs, nope, rope, latent = shape
    x, table = normal(rng, counts[-1], inputs), rope_table(POSITIONS, rope, 10000.0)
    positions = rng.integers(0, POSITIONS, counts[-1]).astype("int32")
    q_up, packed_q_up = stored_matrix(rng, weight_format, tiles.output_tile, heads, nope + rope, inputs)
    k_up, packed_k_up = stored_matrix(rng, weight_format, tiles.output_tile, heads, latent, nope)
    expected = twins.latent_query(x, q_up, k_up, positions, table)
    func = gpu.latent_query(tiles, heads, inputs, nope, rope, latent, POSITIONS, weight_format)
    for n in counts:
        out = run(func, x[:n], packed_q_up, packed_k_up, positions[:n], table, Out((n, heads, latent + rope)))
        assert nmse(out, expected[:n]) < EXACT


def attention_cases():
    """Family, formats of weights and cache, shape: weights are read only where values are projected."""
    for shape, (*_, v_dim) in SHAPES.items():
        for weights, cache in (("float32", "float32"), ("float16", "float16"), ("q4f32_1", "float32"),
                               ("q4f16_1", "float16")):
            if v_dim or not weights.startswith("q4"):
                yield "generic", weights, cache, shape
    for family in ("opencl", "adreno"):  # as far as this kernel goes, "mali" is "opencl"
        yield family, "q4f32_1", "float32", "mla, values projected"
        yield family, "float32", "float32", "wide latent"


@pytest.mark.parametrize("family, weight_format, dtype, shape", [*attention_cases()])
def test_attention(rng, family, weight_format, dtype, shape):
    """A causal chunk for even tokens, a tree with bits in both words for odd ones; unseen slots are NaN."""
    tiles = GPU_TILES[family]
    heads, kv_heads, key_dim, offset, value_dim, width, v_dim = SHAPES[shape]
    n = 70
    odd = np.arange(n) % 2
    q, kv = normal(rng, n, heads, key_dim), normal(rng, SLOTS, kv_heads, width, dtype=dtype)
    visible = np.where(odd, PAST, PAST + 1 + np.arange(n)).astype("int32")
    ancestors = np.array([[1 | 1 << t % 31 | -(1 << 31), 1 << 3] if t % 2 else [0, 0] for t in range(n)], "int32")
    seen = twins.seen_slots(visible, ancestors, PAST, SLOTS)
    keys, values = kv[..., :key_dim].copy(), kv[..., offset:offset + value_dim].copy()
    kv[~seen.any(0)] = np.nan
    v_up, packed = (stored_matrix(rng, weight_format, tiles.output_tile, heads, v_dim, value_dim) if v_dim
                    else (None, None))
    func = gpu.attention(tiles, heads, kv_heads, SLOTS, key_dim=key_dim, value_offset=offset, value_dim=value_dim,
                         width=width, scale=0.3, cache_dtype=dtype, v_dim=v_dim, weight_format=weight_format)
    expected = twins.attention(q, keys, values, seen, 0.3, v_up)
    for rows in (slice(0, n), slice(0, 9), slice(n - 1, n)):
        count = len(q[rows])
        out = run(func, q[rows], kv, visible[rows], ancestors[rows], PAST, *([packed] if v_dim else []),
                  Out((count, heads * (v_dim or value_dim))))
        assert nmse(out, expected[rows]) < EXACT
