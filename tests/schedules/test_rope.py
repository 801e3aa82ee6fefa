"""Rotary embedding of queries, and the table it reads."""

import numpy as np
import pytest
from harness import EXACT, MAX_TOKENS, Out, check_rows, nmse, normal, run

from schedules import cpu, twins
from schedules.rope_table import rope_table

POSITIONS = 300


@pytest.mark.parametrize("heads, rope", [(2, 64), (3, 6), (4, 32), (1, 2)])
def test_rope_query(target, rng, heads, rope):
    x_width = heads * rope + 3
    func = cpu.rope_query(target.tiles, heads, rope, POSITIONS, x_width=x_width)
    x, table = normal(rng, MAX_TOKENS, x_width), rope_table(POSITIONS, rope, 10000.0)
    pos = rng.integers(0, POSITIONS, MAX_TOKENS).astype("int32")
    pos[:2] = 0, POSITIONS - 1
    parts = x[:, :heads * rope].reshape(MAX_TOKENS, heads, rope)
    check_rows(lambda n: run(func, target, x[:n], pos[:n], table, Out((n, heads, rope))),
               twins.rotate(parts, pos, table))


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_rope_table(factor):
    """Angles are float32 products, so large positions deviate from exact ones by their rounding."""
    table = rope_table(POSITIONS, 8, 10000.0, factor)
    assert table.shape == (POSITIONS, 8) and table.dtype == np.float32
    angles = np.outer(np.arange(POSITIONS) / factor, 10000.0 ** -(np.arange(4) / 4))
    assert np.array_equal(table[0], [1, 1, 1, 1, 0, 0, 0, 0])
    assert nmse(table, np.concatenate([np.cos(angles), np.sin(angles)], axis=1)) <= 10 * EXACT
