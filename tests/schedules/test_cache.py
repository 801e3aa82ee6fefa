"""Cache kernels: appended rows, moved rows, and every other row left alone."""

import numpy as np
import pytest
from harness import DTYPES, EXACT, MAX_TOKENS, TOKENS, InOut, nmse, normal, run, same_bits

from schedules import cpu, twins
from schedules.rope_table import rope_table

SLOTS, POSITIONS, EPS = 150, 300, 1e-6


def check_append(append, expected, kv_shape):
    """``append(cache, rows, past, dtype)`` writes the first rows of ``expected`` [MAX_TOKENS, kv_heads, width].

    float16 must be the float32 result, rounded."""
    empty = np.full(kv_shape, np.nan, "float32")
    whole = append(empty, MAX_TOKENS, 0, "float32")[:MAX_TOKENS]
    assert nmse(whole, expected) <= EXACT
    for n in TOKENS:
        for past in {0, 5, SLOTS - n} if n <= SLOTS - 5 else {0}:
            for dtype in DTYPES:
                kv = np.random.default_rng(n).standard_normal(kv_shape).astype(dtype)
                wanted = kv.copy()
                wanted[past:past + n] = whole[:n]
                assert same_bits(append(kv, n, past, dtype), wanted), (n, past, dtype)


@pytest.fixture
def pos(rng):
    pos = rng.integers(0, POSITIONS, MAX_TOKENS).astype("int32")
    pos[:2] = 0, POSITIONS - 1
    return pos


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("latent, rope, offset, tail", [(64, 64, 96, 0), (45, 6, 3, 5), (16, 8, 0, 0)])
def test_append_latent(target, rng, pos, latent, rope, offset, tail, weight_dtype):
    x_width = offset + latent + rope + tail
    x, weight = normal(rng, MAX_TOKENS, x_width), normal(rng, latent, dtype=weight_dtype)
    table = rope_table(POSITIONS, rope, 10000.0)
    funcs = {dtype: cpu.append_latent(target.tiles, SLOTS, latent, rope, POSITIONS, EPS, x_width=x_width,
                                      offset=offset, dtype=weight_dtype, cache_dtype=dtype) for dtype in DTYPES}

    def append(kv, n, past, dtype):
        return run(funcs[dtype], target, InOut(kv), x[:n], weight, pos[:n], table, past)

    normed = twins.rms_norm(x[:, offset:offset + latent], weight, EPS)
    rotated = twins.rotate(x[:, offset + latent:offset + latent + rope], pos, table)
    check_append(append, np.concatenate([normed, rotated], axis=1)[:, None], (SLOTS, 1, latent + rope))


@pytest.mark.parametrize("kv_heads, dim, offset", [(2, 64, 256), (1, 6, 0), (3, 40, 7)])
def test_append_heads(target, rng, pos, kv_heads, dim, offset):
    x_width = offset + 2 * kv_heads * dim
    x, table = normal(rng, MAX_TOKENS, x_width), rope_table(POSITIONS, dim, 500.0)
    funcs = {dtype: cpu.append_heads(target.tiles, SLOTS, kv_heads, dim, POSITIONS, x_width=x_width, offset=offset,
                                     cache_dtype=dtype) for dtype in DTYPES}

    def append(kv, n, past, dtype):
        return run(funcs[dtype], target, InOut(kv), x[:n], pos[:n], table, past)

    keys, values = x[:, offset:].reshape(MAX_TOKENS, 2, kv_heads, dim).swapaxes(0, 1)
    check_append(append, np.concatenate([twins.rotate(keys, pos, table), values], axis=-1), (SLOTS, kv_heads, 2 * dim))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_heads, width", [(1, 128), (2, 51), (3, 8)])
def test_commit(target, rng, kv_heads, width, dtype):
    func = cpu.commit(target.tiles, SLOTS, kv_heads, width, dtype)
    kv = normal(rng, SLOTS, kv_heads, width, dtype=dtype)
    paths = [np.sort(rng.choice(64, k, replace=False)) for k in (1, 2, 5, 31, 63)]
    for idx in ([0], [63], np.arange(64), np.arange(1, 64), *paths):
        for past in (0, 7, SLOTS - 64):
            expected = kv.copy()
            expected[past:past + len(idx)] = kv[past + np.asarray(idx)]
            assert same_bits(run(func, target, InOut(kv), np.asarray(idx, "int32"), past), expected)
