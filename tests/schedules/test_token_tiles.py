"""A row of the result has the same bits whichever rows are computed together: every size of token tile."""

from dataclasses import replace

import numpy as np
import pytest
from harness import DOT_FAMILIES, TOKENS, Out, family_target, handed_on, normal, out_rows, run, same_bits, stored_matrix

from schedules import cpu, twins
from schedules.rope_table import rope_table

EXPERTS, SIZE, HIDDEN, OUTPUTS = 3, 40, 96, 64
TOKENS = [n for n in TOKENS if n <= 17] + [64]


def linear(target, tiles, mode, rng):
    x, _ = handed_on(normal(rng, TOKENS[-1], HIDDEN), mode)
    _, packed = stored_matrix(rng, "q4f16_1", 32, OUTPUTS, HIDDEN)
    func = cpu.linear(tiles, HIDDEN, OUTPUTS, "q4f16_1", mode)
    return lambda n: run(func, target, x[:n], packed, Out((n, OUTPUTS)))


def latent_query(target, tiles, mode, rng):
    heads, nope, rope, latent = 2, 40, 8, 45
    x, _ = handed_on(normal(rng, TOKENS[-1], HIDDEN), mode)
    _, q_up = stored_matrix(rng, "q4f16_1", 32, heads, nope + rope, HIDDEN)
    _, k_up = stored_matrix(rng, "q4f16_1", 32, heads, latent, nope)
    table, pos = rope_table(TOKENS[-1], rope, 10000.0), np.arange(TOKENS[-1], dtype="int32")
    func = cpu.latent_query(tiles, heads, HIDDEN, nope, rope, latent, TOKENS[-1], "q4f16_1", mode)
    return lambda n: run(func, target, x[:n], q_up, k_up, pos[:n], table, Out((n, heads, latent + rope)))


def sparse_up(target, tiles, mode, rng):
    x, _ = handed_on(normal(rng, TOKENS[-1], HIDDEN), mode)
    _, packed = stored_matrix(rng, "q4f16_1", 32, EXPERTS, SIZE, HIDDEN)
    scores = np.abs(normal(rng, TOKENS[-1], EXPERTS)) + 0.1
    func = cpu.sparse_up(tiles, EXPERTS, HIDDEN, SIZE, "q4f16_1", mode)
    return lambda n: run(func, target, x[:n], scores[:n], *twins.union(scores[:n]), packed,
                         out_rows(mode, EXPERTS, n, SIZE)).swapaxes(0, 1).copy()


def sparse_down(target, tiles, mode, rng):
    act, _ = handed_on(normal(rng, TOKENS[-1], EXPERTS, SIZE), mode)
    _, packed = stored_matrix(rng, "q4f16_1", 32, EXPERTS, OUTPUTS, SIZE)
    residual = normal(rng, TOKENS[-1], OUTPUTS)
    func = cpu.sparse_down(tiles, EXPERTS, OUTPUTS, SIZE, "q4f16_1", 0.7, mode)
    return lambda n: run(func, target, act[:n].swapaxes(0, 1).copy(), *twins.union(np.ones((n, EXPERTS))), packed,
                         residual[:n], Out((n, OUTPUTS)))


@pytest.mark.parametrize("kernel", [linear, latent_query, sparse_up, sparse_down])
@pytest.mark.parametrize("family", DOT_FAMILIES)
def test_every_token_tile(family, kernel):
    target = family_target(family)
    single = replace(target.tiles, coded_token_tiles=((1,), (1,)))
    usual, alone = (kernel(target, tiles, "int8x2", np.random.default_rng(0)) for tiles in (target.tiles, single))
    whole = alone(TOKENS[-1])
    for n in TOKENS:
        assert same_bits(usual(n), whole[:n]), n
