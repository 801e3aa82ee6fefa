"""The kernel that measures arithmetic on devices."""

import numpy as np
import pytest
from gpu_harness import run
from harness import Out, same_bits

from schedules import gpu, twins
from schedules.tiles import GPU_TILES


@pytest.mark.parametrize("family", ["opencl", "adreno", "cuda"])
def test_peak(rng, family):
    x, factors = rng.integers(-9, 9, 768).astype("float32"), np.array([-2, 3], "float32")
    func = gpu.peak(GPU_TILES[family], 768)
    for rows, steps in ((1, 4), (7, 12), (130, 0)):
        y = run(func, x, factors, steps, Out((rows, 768)))
        assert same_bits(y, np.tile(twins.peak(x, factors, steps).astype("float32"), (rows, 1)))
