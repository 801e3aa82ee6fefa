"""GPU kernels that take rows one by one: norms, embedding, rotation, cache, largest logits."""

import numpy as np
import pytest
from gpu_harness import EXACT, STORED, TILES, run
from harness import InOut, Out, nmse, normal, same_bits, stored_matrix

from schedules import gpu, twins
from schedules.rope_table import rope_table
from schedules.tiles import GPU_TILES

POSITIONS, SLOTS, PAST = 300, 40, 11
TOKENS = (1, 5)
DTYPES = ("float32", "float16")
by_items = pytest.mark.parametrize("family", ["generic", "adreno"])  # the rest have one's number of work-items


@pytest.fixture
def positions(rng):
    return rng.integers(0, POSITIONS, max(TOKENS)).astype("int32")


@by_items
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [77, 1792])
def test_norm(rng, family, width, dtype):
    tiles = GPU_TILES[family]
    x, weight = normal(rng, 5, width + 3), normal(rng, width, dtype=dtype)
    expected = twins.rms_norm(x[:, :width], weight, 1e-5, 0.5)
    func = gpu.rms_norm(tiles, width, 1e-5, dtype, x_width=width + 3, scale=0.5)
    for n in TOKENS:
        assert nmse(run(func, x[:n], weight, Out((n, width))), expected[:n]) < EXACT
    picked = np.array([3, 1], "int32")
    gather = gpu.rms_norm(tiles, width, 1e-5, dtype, x_width=width + 3, scale=0.5, gather=True)
    assert nmse(run(gather, x, weight, picked, Out((2, width))), expected[picked]) < EXACT


@pytest.mark.parametrize("weight_format", ["float32", "float16", "q4f32_1", "q4f16_1"])
def test_embedding(rng, weight_format):
    table, packed = stored_matrix(rng, weight_format, TILES.output_tile, 100, 70)
    ids = np.array([0, 99, 31, 32, 7], "int32")
    y = run(gpu.embedding(TILES, 100, 70, weight_format, 12.0), ids, packed, Out((5, 70)))
    assert nmse(y, twins.embedding(ids, table, 12.0)) < EXACT


def test_rotated_queries(rng, positions):
    x, table = normal(rng, 5, 100), rope_table(POSITIONS, 32, 10000.0)
    y = run(gpu.rope_query(TILES, 3, 32, POSITIONS, x_width=100), x, positions, table, Out((5, 3, 32)))
    assert nmse(y, twins.rotate(x[:, :96].reshape(5, 3, 32), positions, table)) < EXACT


def same_cache(found, expected, changed, dtype):
    """The rows from PAST on are those expected, as near as ``dtype`` can hold them; the others have the same bits."""
    rows = np.arange(SLOTS)
    new = (rows >= PAST) & (rows < PAST + changed)
    assert nmse(found[new], expected[new]) < (STORED if dtype == "float16" else EXACT)
    assert same_bits(found[~new], expected[~new].astype(dtype))


@by_items
@pytest.mark.parametrize("dtype, cache_dtype", [("float32", "float32"), ("float32", "float16"),
                                                ("float16", "float16")])
def test_append_latent(rng, positions, family, dtype, cache_dtype):
    tiles = GPU_TILES[family]
    x, weight, table = normal(rng, 5, 150), normal(rng, 64, dtype=dtype), rope_table(POSITIONS, 32, 10000.0)
    kv = normal(rng, SLOTS, 1, 96, dtype=cache_dtype)
    func = gpu.append_latent(tiles, SLOTS, 64, 32, POSITIONS, 1e-6, x_width=150, offset=50, dtype=dtype,
                             cache_dtype=cache_dtype)
    expected = kv.astype("float64")
    expected[PAST:PAST + 5, 0, :64] = twins.rms_norm(x[:, 50:114], weight, 1e-6)
    expected[PAST:PAST + 5, 0, 64:] = twins.rotate(x[:, 114:146], positions, table)
    same_cache(run(func, InOut(kv), x, weight, positions, table, PAST), expected, 5, cache_dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_append_heads_and_commit(rng, positions, dtype):
    x, table = normal(rng, 5, 230), rope_table(POSITIONS, 32, 10000.0)
    kv = normal(rng, SLOTS, 2, 64, dtype=dtype)
    func = gpu.append_heads(TILES, SLOTS, 2, 32, POSITIONS, x_width=230, offset=96, cache_dtype=dtype)
    expected = kv.astype("float64")
    expected[PAST:PAST + 5, :, :32] = twins.rotate(x[:, 96:160].reshape(5, 2, 32), positions, table)
    expected[PAST:PAST + 5, :, 32:] = x[:, 160:224].reshape(5, 2, 32)
    written = run(func, InOut(kv), x, positions, table, PAST)
    same_cache(written, expected, 5, dtype)
    kept = np.array([0, 2, 3], "int32")
    moved = run(gpu.commit(TILES, SLOTS, 2, 64, dtype), InOut(written), kept, PAST)
    expected = written.copy()
    expected[PAST:PAST + 3] = written[PAST + kept]
    assert (moved == expected).all()


@by_items
@pytest.mark.parametrize("vocab", [37, 3000])
def test_largest_logits(rng, family, vocab):
    tiles = GPU_TILES[family]
    logits = normal(rng, 4, vocab)
    logits[0, 5] = logits[0, 30] = 9  # of equals the first
    logits[1] = -np.inf
    tokens, values = run(gpu.argmax(tiles, vocab), logits, Out((4,), "int32"), Out((4,)))
    assert (tokens == logits.argmax(1)).all() and (values == logits.max(1)).all()


def test_a_nan_is_noticed_among_the_largest_logits(rng):
    logits = normal(rng, 4, 700)
    logits[0, 0] = logits[1, 699] = logits[2, 333] = np.nan
    tokens, values = run(gpu.argmax(TILES, 700), logits, Out((4,), "int32"), Out((4,)))
    assert tokens.tolist() == [0, 699, 333, logits[3].argmax()]
    assert np.isnan(values).tolist() == [True, True, True, False] and values[3] == logits[3].max()


@by_items
@pytest.mark.parametrize("mapped", [False, True])
def test_most_likely_tokens(rng, family, mapped):
    tiles = GPU_TILES[family]
    logits = normal(rng, 3, 700)
    logits[0, 5] = logits[0, 690] = 9
    ids = rng.permutation(9000)[:700].astype("int32") if mapped else None
    tokens, log_probs = run(gpu.top_k(tiles, 700, 10, mapped=mapped), logits, *([ids] if mapped else []),
                            Out((3, 10), "int32"), Out((3, 10)))
    expected = twins.top_k(logits, 10, ids)
    assert (tokens == expected[0]).all() and nmse(log_probs, expected[1]) < EXACT
