"""GPU kernels that choose tokens, held against their twins as ``verify`` does."""

import json

import numpy as np
import pytest
from gpu_harness import TILES, run
from harness import InOut, Out

from runtime_py.selftest.bounds import Written
from runtime_py.selftest.cases import CASES
from runtime_py.selftest.subject import Subject
from schedules import gpu
from schedules.builder import FACTORY
from schedules.tiles import GPU_TILES

VOCAB = 5003  # five parts of a sort, a piece of 40 for each work-item, neither of them full
KERNELS = {
    "multinomial": lambda tiles: gpu.multinomial(tiles, VOCAB),
    "sample_top_p": lambda tiles: gpu.sample_top_p(tiles, VOCAB),
    "take_probs": lambda tiles: gpu.take_probs(VOCAB),
    "renormalize_top_p": lambda tiles: gpu.renormalize_top_p(tiles, VOCAB),
    "sort_pass": lambda tiles: gpu.sort_pass(tiles, VOCAB),
    "first sort_pass": lambda tiles: gpu.sort_pass(tiles, VOCAB, first=True),
    "verify_drafts": lambda tiles: gpu.verify_drafts(tiles, VOCAB),
}


@pytest.mark.parametrize("family", ["generic", "adreno"])  # the rest have one's number of work-items
@pytest.mark.parametrize("name", KERNELS)
def test_as_its_twin(family, name):
    func = KERNELS[name](GPU_TILES[family])
    factory = json.loads(str(func.attrs[FACTORY]))
    subject = Subject(factory["arguments"], (), {}, seed=3)
    for n in (1, 4, 9):
        for arguments in CASES[factory["name"]](subject, n):
            results = [argument for argument in arguments if isinstance(argument, Written)]
            found = run(func, *map(_argument, arguments))
            for result, values in zip(results, found if isinstance(found, list) else [found], strict=True):
                result.compare(values)


def _argument(argument):
    if not isinstance(argument, Written):
        return argument
    return Out(argument.shape, argument.dtype, partial=True) if argument.before is None else InOut(argument.before)


@pytest.mark.parametrize("share", [1 - 2.0**-24, 1.0])
def test_the_end_of_a_distribution(rng, share):
    """However sums are rounded, a token that is impossible, or beyond top_p, is not chosen."""
    weights = rng.random((8, VOCAB)).astype(np.float32)
    weights[:, VOCAB // 2:] = 0
    probs = -np.sort(-weights / weights.sum(-1, keepdims=True))
    shares, rows = np.full(8, share, np.float32), np.arange(8, dtype=np.int32)
    tokens = run(gpu.multinomial(TILES, VOCAB), probs, shares, rows, Out((8,), "int32"))
    assert (probs[rows, tokens] > 0).all() and (tokens > 0.99 * (VOCAB // 2)).all()
    names = np.tile(np.arange(VOCAB, dtype=np.int32), (8, 1))
    top_p = np.array([probs[row, :10 + row].astype(np.float64).sum() - 1e-5 for row in rows], np.float32)
    tokens = run(gpu.sample_top_p(TILES, VOCAB), probs, names, shares, rows, top_p, Out((8,), "int32"))
    assert tokens.tolist() == [9 + row for row in rows]


def test_passes_sort(rng):
    """All digits, the lowest first: falling, equals by token."""
    probs = rng.random((2, VOCAB)).astype(np.float32)**8
    probs[:, 100:4000:7] = probs[0, 5]
    values, names = probs, []
    outputs = (Out(probs.shape), Out(probs.shape, "int32"), Out((2, 16, 5), "int32"))
    for shift in range(0, 32, 4):
        values, *names, _ = run(gpu.sort_pass(TILES, VOCAB, first=not shift), values, *names, shift, *outputs)
    expected = np.argsort(-probs, axis=-1, kind="stable")
    assert (names[0] == expected).all() and (values == np.take_along_axis(probs, expected, -1)).all()


def test_a_draft_as_likely_as_the_model_says_is_accepted():
    """Refused only by rounding: no probability is left then, and the child is accepted."""
    probs = np.zeros((2, VOCAB), np.float32)
    probs[:, 7] = 1
    draft = probs.copy()
    draft[1, 7] = np.nextafter(np.float32(1), np.float32(2))
    tree = [np.array(ints, np.int32) for ints in ([0, 7], [1, -1], [-1, -1])]
    after, nodes = run(gpu.verify_drafts(TILES, VOCAB), InOut(probs), InOut(np.zeros(1, np.int32)), draft, *tree,
                       np.ones(2, np.float32))
    assert nodes.tolist() == [1] and (after == probs).all()
