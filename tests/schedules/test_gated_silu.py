"""The gated activation kernel."""

import pytest
from harness import EXACT, MAX_TOKENS, TOKENS, Out, check_rows, normal, out_rows, run, same_bits

from schedules import activations, cpu, twins

WIDTHS = (1, 45, 96)


@pytest.mark.parametrize("width", WIDTHS)
def test_gated_silu(target, rng, width):
    func, x = cpu.gated_silu(target.tiles, width), normal(rng, MAX_TOKENS, 2 * width) * 4
    check_rows(lambda n: run(func, target, x[:n], Out((n, width))), twins.gated_silu(x), EXACT)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_codes_are_those_of_the_float32_result(coded, rng, width):
    target, mode = coded
    x = normal(rng, MAX_TOKENS, 2 * width)
    expected = activations.encode(run(cpu.gated_silu(target.tiles, width), target, x, Out((MAX_TOKENS, width))), mode)
    func = cpu.gated_silu(target.tiles, width, mode)
    for n in TOKENS:
        assert same_bits(run(func, target, x[:n], out_rows(mode, n, width)), expected[:n]), n
