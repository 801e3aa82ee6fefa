"""Router kernel: ReLU and the norm over experts."""

import numpy as np
import pytest
from harness import MAX_TOKENS, Out, check_rows, normal, run

from schedules import cpu, twins


@pytest.mark.parametrize("norm, dtype", [
    ("rms", "float32"), ("rms", "float16"), ("sum", "float32"), ("none", "float32")])
@pytest.mark.parametrize("experts", [1, 20, 40, 130])
def test_router(target, rng, experts, norm, dtype):
    eps, norm_scale = 1e-5, 2.5
    func = cpu.router(target.tiles, experts, norm, eps, norm_scale, dtype)
    logits = normal(rng, MAX_TOKENS, experts)
    logits[1] = -1.0  # no expert active
    logits[2] = np.abs(logits[2]) + 0.1  # all of them
    logits[3] = 0.0
    weights = [normal(rng, experts, dtype=dtype)] if norm == "rms" else []
    expected = twins.router(logits, norm, eps, norm_scale, *(weights or [None]))

    def kernel(n):
        return run(func, target, logits[:n], *weights, Out((n, experts)))

    check_rows(kernel, expected)
    assert np.array_equal(kernel(MAX_TOKENS) != 0, logits > 0), "active means a logit above zero"
