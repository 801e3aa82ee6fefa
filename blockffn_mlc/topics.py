"""The structure of a synthetic model: a vocabulary in topics, routers that follow them, a text that stays in them.

In a trained BlockFFN consecutive tokens share most of their active experts, and some tokens need about half as many
as others. Independent random weights and random tokens show neither. Here every token has a topic and is either
*quiet* or *busy*; its embedding is ``threshold * common + topic + noise``, and a router's row is
``sum over topics of affinity * topic - common``. So an expert is active where its affinity for the token's topic
exceeds the threshold of the token's kind, give or take the noise, and a quiet token uses few experts beyond
those that busy tokens of its topic use.
"""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np

from .config import HIDDEN_SIZE_MULTIPLE, BlockFFNConfig

STREAM_TOKENS = 8192
# The paper's histogram of active experts has one mode at 10-15% and a larger one at 20-25%.
QUIET_ACTIVE, BUSY_ACTIVE = 0.125, 0.22
_TOKENS_PER_QUIET = 3  # every third token of the vocabulary, and about every third of the stream, is quiet
_TOPIC_RUN, _KIND_RUN = 32, 8  # mean tokens before the stream draws a new topic, a new kind
_TOPICS = HIDDEN_SIZE_MULTIPLE - 1  # with the common direction as many as are orthogonal in every hidden size
# Noise that a token's embedding adds to a router score, in standard deviations of the affinities.
_SCORE_NOISE = 0.12


def generator(seed: str, name: str, block: int = 0) -> np.random.Generator:
    """The random numbers of one block of one tensor."""
    digest = hashlib.sha256(f"{seed}/{name}/{block}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))


class Topics:
    """Topics and kinds of the tokens of ``config``'s vocabulary, decided by ``seed``."""

    def __init__(self, config: BlockFFNConfig, seed: str) -> None:
        self._config, self._seed = config, seed
        random = generator(seed, "topics")
        order = random.permutation(config.vocab_size)
        special = np.isin(order, (config.bos_token_id, *config.eos_token_id))
        # A token's rank decides its topic and kind; special tokens come last, where the stream does not draw.
        self._order = np.concatenate([order[~special], order[special]])
        self._usable = len(order) - int(special.sum())
        self._topics = max(1, min(_TOPICS, self._usable // _TOKENS_PER_QUIET))
        self._rank = np.argsort(self._order)
        self._thresholds = np.array([NormalDist().inv_cdf(1 - share) for share in (BUSY_ACTIVE, QUIET_ACTIVE)],
                                    np.float32)
        # Rows of a Walsh matrix, repeated over the hidden size with random signs: exactly orthogonal.
        index = np.arange(HIDDEN_SIZE_MULTIPLE)
        parity = np.array([[(i & k).bit_count() & 1 for i in index.tolist()] for k in index.tolist()])
        walsh = np.tile(1 - 2 * parity, config.hidden_size // HIDDEN_SIZE_MULTIPLE)
        self._directions = (walsh * random.choice([-1, 1], config.hidden_size)).astype(np.float32)

    @property
    def noise(self) -> float:
        """Standard deviation of the noise to add to each element of ``hidden``. Router rows span
        ``HIDDEN_SIZE_MULTIPLE`` of ``hidden_size`` dimensions and see just that share of it."""
        return _SCORE_NOISE * (self._config.hidden_size / HIDDEN_SIZE_MULTIPLE) ** 0.5

    def hidden(self, start: int, stop: int) -> np.ndarray:
        """Hidden states of tokens start..stop-1 without their noise, float32 [stop - start, hidden_size]."""
        rank = self._rank[start:stop]
        quiet = rank // self._topics % _TOKENS_PER_QUIET == 0
        hidden = self._directions[1 + rank % self._topics]
        hidden += self._thresholds[quiet.astype(int), None] * self._directions[0]
        return hidden

    def router(self, name: str) -> np.ndarray:
        """The router's weights, float32 [num_experts, hidden_size]. The affinities for a topic are equidistant
        quantiles of the normal distribution in random order, so that all topics activate about equally many."""
        config, random = self._config, generator(self._seed, name)
        offsets = random.uniform(0.1, 0.9, self._topics)
        shares = (np.arange(config.num_experts)[:, None] + offsets) / config.num_experts
        affinities = random.permuted(np.vectorize(NormalDist().inv_cdf)(shares), axis=0).astype(np.float32)
        common, topics = self._directions[0], self._directions[1 : 1 + self._topics]
        return (affinities @ topics - common) / np.float32(config.hidden_size)

    def stream(self, length: int = STREAM_TOKENS) -> np.ndarray:
        """A text for this model, int32 [length], without bos and eos: topics last ``_TOPIC_RUN`` tokens on average,
        stretches of busy or of quiet tokens a multiple of ``_KIND_RUN``, two to one; tokens are drawn at random."""
        random = generator(self._seed, "stream")
        topic = _runs(random, self._topics, length, _TOPIC_RUN)
        quiet = _runs(random, _TOKENS_PER_QUIET, length, _KIND_RUN) == 0
        kind = np.where(quiet, 0, random.integers(1, _TOKENS_PER_QUIET, length))
        group = self._topics * _TOKENS_PER_QUIET
        rank = random.integers(max(1, self._usable // group), size=length) * group + kind * self._topics + topic
        return self._order[rank % self._usable].astype(np.int32)


def _runs(random: np.random.Generator, choices: int, length: int, mean: int) -> np.ndarray:
    """Runs of 0..choices-1, int64 [length], each of 1 to 2 * mean - 1 tokens. All choices come once, in random
    order, before one comes again, so that short texts are balanced too."""
    rounds = np.tile(np.arange(choices), (length // choices + 1, 1))
    draws = random.permuted(rounds, axis=1).ravel()
    return np.repeat(draws, random.integers(1, 2 * mean, len(draws)))[:length]
