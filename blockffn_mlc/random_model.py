"""Synthetic weights for any shape: what a checkpoint would hold, made up on demand."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import numpy as np

from .checkpoint import expected_shapes
from .config import BlockFFNConfig

ACTIVE_SHARE = 0.2
_SUFFIX = "@random"
_BLOCK_ROWS = 64
# Each hidden state starts as unit noise plus this common mean, on which the routers' threshold rests: a router has
# no bias. The mean also makes some experts more popular than others.
_HIDDEN_MEAN = 0.5
# Attention and FFN outputs are kept small beside the embedding, so that hidden states keep that mean in all layers.
_BRANCH_GAIN = 0.25


class RandomCheckpoint:
    """Synthetic float32 weights with the interface of ``checkpoint.Checkpoint`` (``folder`` is None).

    They depend only on ``seed``, the tensor's name and shape. Activations stay near unit size in every layer and
    on average about ``ACTIVE_SHARE`` of the experts are active for a token.
    """

    def __init__(self, config: BlockFFNConfig, seed: str) -> None:
        self.config = config
        self.folder = None
        self.expected = expected_shapes(config)
        self._seed = seed

    def read(self, name: str) -> np.ndarray:
        """One whole tensor, float32, canonical shape."""
        return self.read_rows(name, 0, self.expected[name][0])

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 along the first axis, float32 ``[stop - start, ...]``."""
        total, *rest = self.expected[name]
        values = np.empty((stop - start, *rest), np.float32)
        for block in range(start // _BLOCK_ROWS, math.ceil(stop / _BLOCK_ROWS)):
            first, last = block * _BLOCK_ROWS, min((block + 1) * _BLOCK_ROWS, total)
            noise = self._generator(name, block).standard_normal((last - first, *rest), np.float32)
            low, high = max(first, start), min(last, stop)
            values[low - start : high - start] = noise[low - first : high - first]
        mean, deviation = self._moments(name)
        values *= np.float32(deviation)
        values += np.float32(mean)
        return values

    def _generator(self, name: str, block: int) -> np.random.Generator:
        digest = hashlib.sha256(f"{self._seed}/{name}/{block}".encode()).digest()
        return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))

    def _moments(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of a tensor's elements."""
        config, shape = self.config, self.expected[name]
        hidden_rms = math.hypot(1.0, _HIDDEN_MEAN)
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            return _HIDDEN_MEAN / config.scale_emb, 1 / config.scale_emb
        if name.endswith("norm.weight"):
            return 1.0, 0.1
        if name.endswith(".bias"):
            return 0.0, 0.02
        if name.endswith("router_proj.weight"):
            # A score is normal with variance 1 and mean hidden_size * (mean of the row) * (mean of the normed input).
            threshold = NormalDist().inv_cdf(1 - ACTIVE_SHARE)
            return -threshold * hidden_rms / _HIDDEN_MEAN / config.hidden_size, config.hidden_size**-0.5
        if name.endswith("down_proj"):
            return 0.0, _BRANCH_GAIN * (config.num_experts * config.expert_size) ** -0.5
        gain = _BRANCH_GAIN if name.endswith("o_proj.weight") else 1.0
        return 0.0, gain * shape[-1] ** -0.5


def random_checkpoint(name: str) -> RandomCheckpoint:
    """The synthetic model ``NAME@random`` (or just ``NAME``) of a published shape.

    Raises UserError if NAME is not one of ``config.PRESETS``.
    """
    config = BlockFFNConfig.from_name(name.removesuffix(_SUFFIX))
    return RandomCheckpoint(config, seed=name.removesuffix(_SUFFIX).lower().removeprefix("blockffn-"))
