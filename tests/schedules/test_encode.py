"""Activations as 8-bit codes: what the format promises, and that kernels encode as numpy does."""

import numpy as np
import pytest
from harness import CODED, TOKENS, normal, out_rows, run, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from machine import skip_unless_it_can_run

from schedules import activations, cpu
from schedules.activations import CODE_WORDS, GROUP, LARGEST_CODE, LOW_BITS, PLANES
from targets.cpu import cpu_target

WIDTHS = (1, 31, 32, 33, 45, 96, 416)


def difficult_rows(rng, width):
    """Random rows of all sizes, zeros, halves between two codes, and groups of extremes."""
    rows = normal(rng, TOKENS[-1], width)
    rows[0] = 0.0
    rows[1] = -0.0
    rows[2] *= 1e-20
    rows[3] *= 1e-37
    rows[4] = rng.choice(np.float32([1e-45, -1e-45, 0]), width)
    rows[5] = rng.choice(np.float32([3.4e38, -3.4e38, 1e30]), width)
    rows[6] *= 1e30
    rows[7] = np.float32(0.5) * rng.integers(-254, 255, width)
    rows[7, ::GROUP] = 127.0  # the scale is 1: halves are rounded to even
    rows[8] = np.float32(0.5) * rng.integers(-32512, 32513, width)
    rows[8, ::GROUP] = -16256.0
    rows[9] *= np.float32(10.0) ** rng.integers(-10, 10, width)
    rows[10, ::2] = 0.0
    rows[11] = 1e-45
    return rows


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(coded, value):
    """A damaged activation must not become a number, whatever its place in the group."""
    target, mode = coded
    x = np.ones((GROUP, GROUP), "float32")
    np.fill_diagonal(x, value)
    records = run(cpu.encode(target.tiles, GROUP, mode), target, x, out_rows(mode, GROUP, GROUP))
    scales = np.ascontiguousarray(records[..., PLANES[mode] * CODE_WORDS]).view(np.float32)
    assert not np.isfinite(scales).any()


@pytest.mark.parametrize("width", WIDTHS)
def test_kernel_encodes_as_numpy_does(coded, rng, width):
    target, mode = coded
    func, x = cpu.encode(target.tiles, width, mode), difficult_rows(rng, width)
    expected = activations.encode(x, mode)
    for n in TOKENS:
        assert same_bits(run(func, target, x[:n], out_rows(mode, n, width)), expected[:n]), n


@pytest.mark.parametrize("mode", activations.ACTIVATIONS)
def test_gathered_rows_are_scaled_before_they_are_rounded(rng, mode):
    skip_unless_it_can_run(mode)
    target, width, scale = cpu_target(), 45, 0.25
    func = cpu.encode(target.tiles, width, mode, scale=scale, gather=True)
    x = normal(rng, 33, width)
    for picked in ([0], [32], [5, 5, 0, 32], rng.integers(0, 33, 65)):
        picked = np.asarray(picked, "int32")
        y = run(func, target, x, picked, out_rows(mode, len(picked), width))
        assert same_bits(y, activations.encode(x[picked] * np.float32(scale), mode))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CODED), arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 70)),
                                             elements=st.floats(-2.0**100, 2.0**100, width=32)))
def test_values_are_kept_to_half_a_code(mode, x):
    """|decoded - x| is at most half of its group's scale, and a little for roundings of the scale."""
    groups = activations.activation_shape(mode, x.shape)[0][-2]
    padded = np.zeros((len(x), groups * GROUP))
    padded[:, :x.shape[1]] = x
    top = np.abs(padded).reshape(len(x), groups, GROUP).max(-1)
    allowed = np.repeat(top / LARGEST_CODE[mode] * 0.501, GROUP, axis=1)[:, :x.shape[1]]
    decoded = activations.decode(activations.encode(x, mode), mode, x.shape[1])
    tiny = activations.SMALLEST  # groups of less become zeros
    assert (np.abs(decoded - x) <= np.maximum(allowed, tiny)).all()


@pytest.mark.parametrize("mode", CODED)
def test_the_order_of_a_record(mode):
    """Codes by column, the bits of the scale, then what turns weight codes 0..14 into -7..7."""
    x = np.zeros((1, 40), np.float32)
    x[0, :4] = LARGEST_CODE[mode], -1, 2, -3
    x[0, 32:35] = 0.25, -0.5, 0.125
    records = activations.encode(x, mode)
    planes = PLANES[mode]
    assert records.shape == (1, 2, planes * (CODE_WORDS + 1) + 1) and records.dtype == np.int32
    first, second = records[0]
    parts = [first[plane * CODE_WORDS:(plane + 1) * CODE_WORDS].view(np.int8) for plane in range(planes)]
    assert parts[-1][1:4].tolist() == [-1, 2, -3] and not np.array(parts)[:, 4:].any()
    assert parts[0][0] == 127 and (planes == 1 or parts[1][0] == 0)
    assert [record[planes * CODE_WORDS:][:1].view(np.float32)[0] for record in (first, second)] == [
        1, np.float32(0.5) / np.float32(LARGEST_CODE[mode])]
    for plane, part in enumerate(parts):
        assert first[planes * CODE_WORDS + 1 + plane] == -7 * int(part.astype(int).sum())
    assert np.array_equal(activations.decode(records, mode, 40)[0, :4], x[0, :4])


def test_two_planes_hold_fifteen_bits():
    """Every code of the wide format survives, and the planes are bytes."""
    largest = LARGEST_CODE["int8x2"]
    codes = np.arange(-largest, largest + 1, dtype=np.float32)
    x = np.full((-(-len(codes) // 31), GROUP), largest, np.float32)
    x[:, 1:].reshape(-1)[...] = 0
    flat = np.zeros(x[:, 1:].size, np.float32)
    flat[:len(codes)] = codes
    x[:, 1:] = flat.reshape(-1, 31)
    assert np.array_equal(activations.decode(activations.encode(x, "int8x2"), "int8x2", GROUP), x)
    assert 127 << LOW_BITS == largest
