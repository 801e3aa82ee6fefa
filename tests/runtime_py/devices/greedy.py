"""Models on a device and on the processor: how far logits differ, and greedy choices that this cannot change."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from building import build

from runtime_py import Engine
from schedules.tiles import CPU_TILES

# Two logits that are further apart than this share of the logits' root mean square do not change places between
# devices (docs/devices.md); by format.
TIE = {"q0f32": 1e-4, "q4f32_1": 2e-4, "q0f16": 1e-3, "q4f16_1": 1e-3}


class Pair(NamedTuple):
    """The same model in the same format on both."""

    cpu: Engine
    device: Engine

    @classmethod
    def build(cls, device, folder, *arguments):
        """``arguments``: build.py's, for model and format."""
        with pytest.MonkeyPatch.context() as patch:
            for name, row in CPU_TILES.items():  # more sizes take long to compile and change no result
                patch.setitem(CPU_TILES, name, replace(row, token_tiles=(1,), q4_token_tiles=(1,)))
            build(*arguments, "--activations", "f32", "--target", f"cpu,{device.kind}", "--no-mlc",
                  "-o", folder, "-q")
        return cls(Engine.load(folder / "cpu"), Engine.load(folder / device.kind, device=device.name))

    @property
    def quantization(self):
        """The format's name."""
        return self.cpu.artifact.chat_config["quantization"]


def check_no_tie(logits, quantization):
    """Every row's choice is clear. Returns the bound."""
    bound = TIE[quantization] * np.sqrt(np.mean(logits.astype(np.float64)**2))
    second, first = np.partition(logits, -2, axis=-1)[:, -2:].T
    assert (first - second).min() > bound
    return bound


def check_bound(logits, others, quantization):
    """Choices among ``others``, of another device, can only differ from those among ``logits`` by the bound: both
    logits may be off, in opposite directions. They do not, as no row has a tie."""
    assert 0 < 2 * np.abs(others - logits).max() <= check_no_tie(logits, quantization)
