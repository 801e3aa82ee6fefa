"""The structure of synthetic models: what a token's topic and kind decide, and the stream through the topics."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from checkpoints import MLA

from blockffn_mlc.config import PRESETS
from blockffn_mlc.topics import BUSY_ACTIVE, QUIET_ACTIVE, STREAM_TOKENS, Topics

ROUTER = "model.layers.0.mlp.router_proj.weight"


@pytest.mark.parametrize("hidden", [32, 96, 768])
@pytest.mark.parametrize("experts", [12, 56])
def test_every_token_activates_the_share_of_its_kind(hidden, experts):
    topics = Topics(replace(MLA, hidden_size=hidden, num_experts=experts, vocab_size=200), "0")
    scores = topics.hidden(0, 200) @ topics.router(ROUTER).T
    kinds = []
    for share in (QUIET_ACTIVE, BUSY_ACTIVE):
        affinities = np.sort(scores) + NormalDist().inv_cdf(1 - share)
        offsets = np.vectorize(NormalDist().cdf)(affinities) * experts - np.arange(experts)
        kinds.append((np.ptp(offsets, axis=1) < 1e-3) & (offsets > 0).all(axis=1) & (offsets < 1).all(axis=1))
    quiet, busy = kinds
    assert np.array_equal(quiet, ~busy) and quiet.mean() == pytest.approx(1 / 3, abs=0.05)
    counts = (scores > 0).sum(axis=1)
    for kind, share in ((quiet, QUIET_ACTIVE), (busy, BUSY_ACTIVE)):
        assert abs(counts[kind] - share * experts).max() < 1
        assert counts[kind].mean() / experts == pytest.approx(share, abs=0.03)


def test_a_topic_decides_the_experts_layer_by_layer():
    topics = Topics(replace(MLA, num_experts=56), "0")
    hidden = topics.hidden(0, 96)
    first, second = (hidden @ topics.router(ROUTER.replace("0", layer)).T for layer in "01")
    shifted = first - first.max(axis=1, keepdims=True)  # the affinities for a token's topic, whatever its kind
    same = abs(shifted[:, None] - shifted).max(-1) < 1e-3
    assert len({row.tobytes() for row in same}) == 31
    assert not np.any(abs(first - second).max(axis=1) < 1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_the_stream_stays_in_topics_and_kinds(name):
    topics, config = Topics(PRESETS[name], name), PRESETS[name]
    stream = topics.stream()
    assert stream.dtype == np.int32 and stream.shape == (STREAM_TOKENS,)
    assert 0 <= stream.min() and stream.max() < config.vocab_size
    assert not np.isin(stream, [config.bos_token_id, *config.eos_token_id]).any()
    assert len(np.unique(stream)) > STREAM_TOKENS / 2
    hidden = np.concatenate([topics.hidden(token, token + 1) for token in stream[:4096]])
    assert len(np.unique(hidden, axis=0)) > 50
    kept = (hidden[1:] == hidden[:-1]).all(axis=1).mean()
    assert 0.85 < kept < 0.92  # two tokens in a row have the same topic and kind


def test_the_seed_decides_the_stream():
    first, again, other = (Topics(MLA, seed).stream() for seed in ("0", "0", "1"))
    np.testing.assert_array_equal(first, again)
    assert (first == other).mean() < 0.1


@pytest.mark.parametrize("vocab", [3, 4, 50, 96])
def test_small_vocabularies(vocab):
    stream = Topics(replace(MLA, vocab_size=vocab), "0").stream(500)
    assert set(stream.tolist()) <= set(range(vocab)) - {1, 2}
