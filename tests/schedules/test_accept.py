"""Choosing tokens and accepting drafts against the twin: one draw at each node, at the first child that carries it."""

import numpy as np
import pytest
from harness import Out, normal, run

from schedules import cpu, twins

SETTINGS = [(0, 0, 1), (1, 0, 1), (0.7, 5, 1), (1.5, 0, 0.9), (2, 40, 0.5), (1e30, 0, 1), (1, 1, 1), (1, 10**9, 1e-9)]
PENALTIES = (1.0, 1.5, 0.7)
NEAR = 1e-5  # of a bound between two tokens' shares: rounding may decide


TEXT = np.zeros(1, np.int32)  # of which nothing counts


def asked(settings, parents, tokens, uniforms, penalty=1.0, seen=0):
    return np.concatenate([settings, [penalty, seen], parents, tokens, uniforms]).astype(np.float64)


def choice(logits, settings, uniform):
    """The token, and the distance of the draw from the nearest bound of its share."""
    bounds = np.append(0, np.cumsum(twins.choose(logits, *settings)))
    token = min(np.searchsorted(bounds, uniform, side="right") - 1, np.flatnonzero(np.diff(bounds))[-1])
    return int(token), min(uniform - bounds[token], bounds[token + 1] - uniform)


def walk(logits, settings, parents, tokens, uniforms, penalty, text):
    node, path, drawn, margin = 0, [], [], 1.0
    while node is not None:
        scores = twins.penalised(logits[node], penalty, [*text, tokens[0], *drawn])
        token, near = choice(scores, settings, uniforms[len(drawn)])
        margin = min(margin, near if settings[0] else 1.0)
        path.append(node)
        drawn.append(token)
        node = next((i for i in range(len(parents)) if parents[i] == node and tokens[i] == token), None)
    return path, drawn, margin


@pytest.mark.parametrize("vocab", [1, 7, 300, 2048])
def test_accept(target, rng, vocab):
    func, lengths, close = cpu.accept(target.tiles, vocab), [], 0
    for turn in range(120):
        settings, n = SETTINGS[turn % len(SETTINGS)], int(rng.integers(1, 17))
        penalty, seen = PENALTIES[turn // 2 % len(PENALTIES)], int(rng.integers(31))
        text = rng.integers(0, vocab, 30).astype(np.int32)
        logits = normal(rng, n, vocab) * 3
        if turn % 3 == 0:
            logits = np.round(logits)  # many are equal
        if turn % 5 == 0 and vocab > 1:
            logits[:, rng.integers(vocab)] = -np.inf
        parents, tokens = np.append(-1, rng.integers(0, np.arange(1, n))), rng.integers(0, vocab, n)
        uniforms = rng.random(n)
        for node in range(n):  # half of the children carry a likely token
            scores = twins.penalised(logits[node], penalty, [*text[:seen], tokens[0]])
            likely = choice(scores, settings, uniforms[min(node, 3)])[0]
            tokens[(parents == node) & (rng.random(n) < 0.5)] = likely
        path, drawn, margin = walk(logits, settings, parents, tokens, uniforms, penalty, text[:seen])
        found = run(func, target, logits, text, asked(settings, parents, tokens, uniforms, penalty, seen),
                    Out((2, n), "int32"))
        if margin < NEAR:
            close += 1
            continue
        rest = [-1] * (n - len(path))
        assert found.tolist() == [path + rest, drawn + rest], (turn, settings)
        lengths.append(len(path))
    assert close < 12 and max(lengths) >= 4


@pytest.mark.parametrize("settings", SETTINGS[:5])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_logits_that_are_not_finite_choose_nothing(target, rng, settings, value):
    for place in (0, 37, 299):
        logits = normal(rng, 2, 300)
        logits[1, place] = value
        likely = choice(logits[0], settings, 0.5)[0]
        found = run(cpu.accept(target.tiles, 300), target, logits, TEXT,
                    asked(settings, [-1, 0], [9, likely], [0.5, 0.5]), Out((2, 2), "int32"))
        assert found.tolist() == [[0, 1], [likely, -1]]
    found = run(cpu.accept(target.tiles, 300), target, np.full((1, 300), -np.inf, np.float32), TEXT,
                asked(settings, [-1], [9], [0.5]), Out((2, 1), "int32"))
    assert found.tolist() == [[0], [-1]]


def test_draws_at_the_ends_stay_among_possible_tokens(target):
    logits = np.full((1, 300), -200, np.float32)
    logits[0, [70, 250]] = 1.0
    for uniform, token in ((0.0, 70), (0.49999, 70), (0.5, 250), (1 - 2**-53, 250)):
        for settings in ((1, 0, 1), (1, 2, 1), (1, 0, 0.99)):
            found = run(cpu.accept(target.tiles, 300), target, logits, TEXT, asked(settings, [-1], [0], [uniform]),
                        Out((2, 1), "int32"))
            assert found.tolist() == [[0], [token]]
