"""Targets that tests compile for."""

from dataclasses import replace

import pytest

from blockffn_mlc.target import Target
from targets.cpu import cpu_target


def few_token_tiles(target: Target) -> Target:
    """The target with token tiles of the two smallest sizes and of the largest where bytes are multiplied: compiling
    every size takes long, and changes no result (tests/schedules/test_token_tiles.py)."""
    few = tuple(tuple(sorted({*sizes[:2], *sizes[-1:]})) for sizes in target.tiles.coded_token_tiles)
    return replace(target, tiles=replace(target.tiles, coded_token_tiles=few))


def can_run(activations: str) -> bool:
    """Whether this machine multiplies such activations by 4-bit weights."""
    return activations == "f32" or bool(cpu_target().tiles.dot)


def skip_unless_it_can_run(activations: str) -> None:
    if not can_run(activations):
        pytest.skip("this machine lacks an instruction for dot products of bytes")
