"""The kernel that measures arithmetic: that it computes what it says, all of it in registers."""

import re

import numpy as np
import pytest
from harness import DOT_FAMILIES, FAMILIES, Out, family_target, run, same_bits
from test_machine_code import DOT, MULTIPLY_ADD, TARGETS, assembly

from schedules import cpu, twins
from schedules.tiles import CPU_TILES


@pytest.mark.parametrize("width", [768, 80])  # the second: of tiles of registers the last is cut
@pytest.mark.parametrize("family, mode", [(family, "f32") for family in FAMILIES]
                         + [(family, mode) for family in DOT_FAMILIES for mode in ("int8", "int8x2")])
def test_peak(rng, family, mode, width):
    target = family_target(family)
    if mode == "f32":
        x, factors = rng.integers(-9, 9, width).astype("float32"), np.array([-2, 3], "float32")
    else:
        x, factors = rng.integers(-9, 9, width).astype("int32"), rng.integers(0, 128, 8).astype("uint8").view("int32")
    for rows, steps in ((1, 4), (3, 12), (2, 0)):
        y = run(cpu.peak(target.tiles, width, mode), target, x, factors, steps, Out((rows, width), x.dtype.name))
        assert same_bits(y, np.tile(twins.peak(x, factors, steps).astype(x.dtype), (rows, 1)))


@pytest.mark.parametrize("unit, mode", [(unit, "f32") for unit in TARGETS] + [(unit, "int8") for unit in DOT])
def test_a_step_is_a_multiply_add_of_every_register(unit, mode):
    """And nothing else comes between them that is not a move of registers (NEON's needs one, where it does not add to
    what it multiplies), the second half of SSE's or the loop's counter."""
    lines = assembly(unit, cpu.peak(CPU_TILES[unit], 768, mode)).splitlines()
    pattern = re.compile(MULTIPLY_ADD[unit] if mode == "f32" else DOT[unit])
    steps = [i for i, line in enumerate(lines) if pattern.search(line)]
    assert len(steps) == 4 * 768 // CPU_TILES[unit].lanes
    chains = 64 if unit in ("dotprod", "neon") or "512" in unit else 48
    for start in range(0, len(steps), chains):
        body = lines[steps[start]:steps[start + chains - 1] + 1]
        others = [line.split()[0] for line in body if not pattern.search(line)]
        assert {*others} <= {"addps", "movaps", "mov", "subs"} and not any(re.search(r"\(%r|\[(x|sp)", line)
                                                                                     for line in body)
