"""4-bit weights: MLC's rule bit for bit, and our order in memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import q4
from schedules.layout import Q4_FORMATS, stored_shape


def quantize_one_by_one(weight, scale_dtype):
    """MLC's group quantisation (group_quantization.py) of float [out, in], one weight at a time."""
    kind = np.dtype(scale_dtype).type
    outputs, inputs = weight.shape
    codes = np.zeros((outputs, inputs), np.uint8)
    scales = np.zeros((outputs, -(-inputs // 32)), scale_dtype)
    for o in range(outputs):
        for g in range(scales.shape[1]):
            group = [kind(w) for w in weight[o, 32 * g:32 * g + 32]]
            largest = kind(0)
            for w in group:
                largest = max(largest, kind(abs(w)))
            scale = scales[o, g] = kind(largest / kind(7))
            for i, w in enumerate(group):
                shifted = kind(kind(w / scale) + kind(7)) if scale != 0 or w != 0 else kind(7)
                codes[o, 32 * g + i] = min(max(round(float(shifted)) if np.isfinite(shifted)
                                               else (14 if shifted > 0 else 0), 0), 14)
    return codes, scales


@pytest.mark.parametrize("weight_format, scale_dtype", [("q4f16_1", "float16"), ("q4f32_1", "float32")])
@pytest.mark.parametrize("inputs", [8, 32, 40, 96])
def test_codes_and_scales_follow_mlc(rng, weight_format, scale_dtype, inputs):
    magnitudes = np.float32([[1], [1e-3], [300], [2e-5], [1e-7], [0]])
    weight = (rng.standard_normal((6, inputs)) * magnitudes).astype("float32")
    weight[0, :8] = [7, 3.5, 2.5, 1.5, -0.5, -1.5, 0, -7]  # halves: rounded to even
    with np.errstate(all="ignore"):
        expected_codes, expected_scales = quantize_one_by_one(weight, scale_dtype)
    codes, scales = q4.quantize(weight, weight_format)
    assert scales.dtype == scale_dtype and scales.tobytes() == expected_scales.tobytes()
    assert np.array_equal(codes, expected_codes)
    assert (codes[5] == 7).all() and not q4.dequantize(codes, scales)[5].any()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(Q4_FORMATS), st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
def test_packing_is_reversible(weight_format, outer, outputs, inputs, seed):
    weight = np.random.default_rng(seed).standard_normal((outer, outputs, inputs)).astype("float32")
    codes, scales = q4.quantize(weight, weight_format)
    packed = q4.pack(codes, scales)
    assert (packed.shape, packed.dtype.name) == stored_shape(weight_format, weight.shape, 32)
    unpacked_codes, unpacked_scales = q4.unpack(packed, outputs, inputs, weight_format)
    assert np.array_equal(codes, unpacked_codes) and scales.tobytes() == unpacked_scales.tobytes()


def test_the_order_of_a_block():
    """Word 32p + o: byte b holds input 8p+b of output o low, input 8p+4+b high."""
    codes = (np.arange(32 * 32).reshape(32, 32) % 15).astype(np.uint8)
    packed = q4.pack(codes, np.arange(32, dtype=np.float16)[:, None])[0, 0]
    for output, inputs in ((0, 0), (5, 3), (31, 31), (17, 12), (16, 20)):
        octet, within = divmod(inputs, 8)
        nibble = packed[32 * octet + output] >> (8 * (within % 4) + 4 * (within // 4)) & 15
        assert nibble == codes[output, inputs]
    assert np.array_equal(packed[128:].view(np.float16), np.arange(32))


def test_padding_is_zero(rng):
    packed = q4.pack(*q4.quantize(rng.standard_normal((33, 40)).astype("float32"), "q4f16_1"))
    codes, scales = q4.unpack(packed, 64, 64, "q4f16_1")
    padded = q4.dequantize(codes, scales)
    assert not padded[33:].any() and not padded[:, 40:].any()


def test_storing_in_parts_changes_nothing(rng, monkeypatch):
    weight = rng.standard_normal((2, 100, 48)).astype("float32")
    whole = q4.store(weight, "q4f16_1")
    monkeypatch.setattr(q4, "_ROWS", 32)
    assert np.array_equal(q4.store(weight, "q4f16_1"), whole)
    assert np.array_equal(whole, q4.pack(*q4.quantize(weight, "q4f16_1")))
