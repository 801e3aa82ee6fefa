"""Synthetic weights for any shape: what a checkpoint would hold, made up on demand."""

from __future__ import annotations

import math

import numpy as np

from .checkpoint import expected_shapes
from .config import BlockFFNConfig
from .topics import Topics, generator

RECIPE_VERSION = 2  # raise it when the same name gives other weights
_SUFFIX = "@random"
_BLOCK_ROWS = 64
# Attention and FFN outputs are kept small beside the embedding, so that routers see the topics in all layers.
_BRANCH_GAIN = 0.25


class RandomCheckpoint:
    """Synthetic float32 weights with the interface of ``checkpoint.Checkpoint`` (``folder`` is None).

    They depend only on ``seed``, the tensor's name and shape. Activations stay near unit size in every layer, and
    routers choose experts as ``topics`` describes. ``token_stream``, int32 [n], is the text to measure them with.
    """

    def __init__(self, config: BlockFFNConfig, seed: str) -> None:
        self.config = config
        self.folder = None
        self.expected = expected_shapes(config)
        self._seed = seed
        self._topics = Topics(config, seed)

    @property
    def token_stream(self) -> np.ndarray:
        return self._topics.stream()

    def read(self, name: str) -> np.ndarray:
        """One whole tensor, float32, canonical shape."""
        return self.read_rows(name, 0, self.expected[name][0])

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 along the first axis, float32 ``[stop - start, ...]``."""
        if name.endswith("router_proj.weight"):
            return self._topics.router(name)[start:stop]
        total, *rest = self.expected[name]
        values = np.empty((stop - start, *rest), np.float32)
        for block in range(start // _BLOCK_ROWS, math.ceil(stop / _BLOCK_ROWS)):
            first, last = block * _BLOCK_ROWS, min((block + 1) * _BLOCK_ROWS, total)
            noise = generator(self._seed, name, block).standard_normal((last - first, *rest), np.float32)
            low, high = max(first, start), min(last, stop)
            values[low - start : high - start] = noise[low - first : high - first]
        mean, deviation = self._moments(name)
        values *= np.float32(deviation)
        values += np.float32(mean)
        if name.endswith("embed_tokens.weight"):
            for low in range(start, stop, _BLOCK_ROWS):
                high = min(low + _BLOCK_ROWS, stop)
                values[low - start : high - start] += self._topics.hidden(low, high) / np.float32(self.config.scale_emb)
        return values

    def _moments(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of a tensor's elements; of an embedding's noise."""
        config, shape = self.config, self.expected[name]
        if name.endswith("embed_tokens.weight"):
            return 0.0, self._topics.noise / config.scale_emb
        if name.endswith("lm_head.weight"):
            return 0.0, 1 / config.scale_emb
        if name.endswith("norm.weight"):
            return 1.0, 0.1
        if name.endswith(".bias"):
            return 0.0, 0.02
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
