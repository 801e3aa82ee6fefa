"""Embedding kernel: rows of a packed table."""

import numpy as np
import pytest
from harness import MAX_TOKENS, Out, check_rows, normal, run, stored_matrix

from schedules import cpu, twins
from schedules.layout import pack_rows


@pytest.mark.parametrize("weight_format", cpu.FORMATS)
@pytest.mark.parametrize("vocab, width", [(1, 32), (45, 96), (97, 33)])
def test_embedding(target, rng, vocab, width, weight_format):
    func = cpu.embedding(target.tiles, vocab, width, weight_format, 12.0)
    table, packed = stored_matrix(rng, weight_format, target.tiles.output_tile, vocab, width)
    ids = rng.integers(0, vocab, MAX_TOKENS).astype("int32")
    ids[:2] = vocab - 1, 0
    check_rows(lambda n: run(func, target, ids[:n], packed, Out((n, width))), twins.embedding(ids, table, 12.0))


def test_unit_scale_copies_bits(target, rng):
    table = normal(rng, 45, 32)
    func = cpu.embedding(target.tiles, 45, 32, "float32", 1.0)
    ids = np.arange(45, dtype="int32")
    packed = pack_rows(table, target.tiles.output_tile)
    assert np.array_equal(run(func, target, ids, packed, Out((45, 32))), table)
