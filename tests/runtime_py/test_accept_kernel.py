"""The kernel that chooses tokens behind a Sampler, against the same Sampler in numpy."""

from array import array

import numpy as np
import pytest
import tvm
from trees import RandomDrafter

from blockffn_mlc.errors import UserError
from runtime_py import Sampling
from runtime_py.accept_kernel import AcceptKernel
from runtime_py.devices import find_device
from runtime_py.sampling import Sampler
from runtime_py.tree import TreeShape
from schedules import cpu
from targets import find_target

VOCAB = 40
NOTHING = array("i")
SAMPLINGS = [Sampling(), Sampling(1.0, seed=3), Sampling(0.7, top_p=0.8, seed=4), Sampling(2.0, top_k=5, seed=5),
             Sampling(1.0, top_k=30, top_p=0.95, seed=6), Sampling(1e-300, seed=7),
             Sampling(1e300, top_k=10**12, seed=8), Sampling(1e300, top_k=VOCAB - 1, seed=9),
             Sampling(1.0, top_p=1e-300, seed=10), Sampling(repetition_penalty=1.3),
             Sampling(1.0, top_p=0.9, repetition_penalty=0.8, seed=11), Sampling(0.5, repetition_penalty=4.0, seed=12)]


@pytest.fixture(scope="module")
def kernel():
    target = find_target("cpu")
    func = cpu.accept(target.tiles, VOCAB).with_attr("global_symbol", "accept")
    return AcceptKernel(tvm.compile(tvm.IRModule({"accept": func}), target.tvm_target).jit()["accept"],
                        find_device("cpu"))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
def test_the_same_seed_gives_the_same_tokens(kernel, sampling):
    """Single draws and trees in turn, hundreds of draws: more than are prepared at once. The text before is a list or
    an array, and gets shorter as well."""
    rng, drafter = np.random.default_rng(0), RandomDrafter([], VOCAB, 0.0)
    one, two, lengths, text = Sampler(sampling, kernel), Sampler(sampling), [], []
    for size in [*range(1, 40), 64] * 4:
        logits = (2 * rng.normal(size=(size, VOCAB))).astype(np.float32)
        if size % 3 == 0:
            logits = np.round(logits)
        text = [] if size == 30 else text + rng.integers(0, VOCAB, 2).tolist()
        assert one(logits[-1], text) == two(logits[-1], text)
        tree = drafter.draft(5, TreeShape(size, size, 10))
        stop_ids = frozenset(rng.integers(0, VOCAB, 4).tolist())
        path, drawn = two.accept(tree, logits, text, stop_ids)
        assert one.accept(tree, logits, array("i", text), stop_ids) == (path, drawn)
        lengths.append(len(path))
    assert max(lengths) > 1 and one.accept(tree, logits)[1] == two.accept(tree, logits)[1]


def test_a_penalty_that_is_too_extreme_is_refused(kernel):
    logits = np.full(VOCAB, 1e15, np.float32)
    with pytest.raises(UserError, match="the largest logit is inf: .* penalty of 1e-35 is too extreme"):
        Sampler(Sampling(1.0, repetition_penalty=1e-35), kernel)(logits, [3])


@pytest.mark.parametrize("sampling", SAMPLINGS[:4], ids=repr)
def test_logits_that_are_not_finite_are_refused(kernel, sampling):
    sampler, drafter = Sampler(sampling, kernel), RandomDrafter([], VOCAB, 0.0)
    tree = drafter.draft(5, TreeShape(4, 3, 10))
    for value in (np.nan, np.inf):
        logits = np.zeros((4, VOCAB), np.float32)
        logits[0, 17] = value
        with pytest.raises(UserError, match=f"the largest logit is {value}"):
            sampler.accept(tree, logits)
        if not sampling.greedy:
            with pytest.raises(UserError, match=f"the largest logit is {value}"):
                sampler(logits[0])


def test_only_the_very_array_has_its_tensor(kernel):
    """The tensor of a pass's logits is used for all of them, not for a part or for other logits."""
    logits = np.random.default_rng(0).normal(size=(3, VOCAB)).astype(np.float32)
    device = find_device("cpu")
    inputs = device.inputs((logits.shape,), "float32")
    inputs.arrays[0][:] = logits
    whole = device.host(inputs.tensors[0])
    kernel.known = whole, inputs.tensors[0]
    greedy = (0.0, 0, 1.0)
    for row in range(3):
        assert kernel(whole[row], NOTHING, *greedy, 1.0, 0, -1, 0, 0.0)[1] == logits[row].argmax()
    expected = logits.argmax(1).tolist()
    found = kernel(whole, NOTHING, *greedy, 1.0, 0, -1, 0, 1, 0, *expected[:2], 0.0, 0.0, 0.0)
    assert found == [0, 1, 2, *expected]
    assert kernel(whole[::-1], NOTHING, *greedy, 1.0, 0, -1, 0, 1, 0, 0, 0, 0.0, 0.0, 0.0)[3] == expected[2]
    for other in (-whole, (-whole)[:]):
        assert kernel(other, NOTHING, *greedy, 1.0, 0, -1, 0, 1, 0, 0, 0, 0.0, 0.0, 0.0)[3] == logits[0].argmin()
