"""4-bit weights with everything else in float32 (q4f32_1), on OpenCL devices that lack half precision."""

from pathlib import Path

import numpy as np
import pytest
from greedy import Pair, check_bound
from machine import opencl_device
from opencl_kernels import counter

from runtime_py.drafters.scripted import ScriptedDrafter

MODEL = Path(__file__).resolve().parents[2] / "golden" / "mla_block"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The same weights on a device and on the processor, and ids to begin with."""
    pair = Pair.build(opencl_device(), tmp_path_factory.mktemp("q4f32"), "--model", MODEL, "--quantization", "q4f32_1")
    with np.load(MODEL / "expected.npz") as arrays:
        return pair, arrays["ids"][0].tolist()


def test_nothing_is_in_half_precision(model):
    for engine in model[0]:
        assert engine.artifact.cache_dtype == "float32"
        assert {str(weight.dtype) for weight in engine.artifact.weights.values()} <= {"float32", "uint32", "int32"}


def test_greedy_tokens_are_those_of_the_processor(model):
    pair, ids = model
    # Not the first tokens: in their text a token has a single active expert in the first layer, whose logit of 0.02 is
    # the sum of much larger terms of either sign. That multiplies roundings by 30 (docs/devices.md).
    launches, prompt = counter("launches"), ids[12:24]
    expected, plain = (engine.generate(prompt, 40, draft="none") for engine in pair)
    assert [token.id for token in plain] == [token.id for token in expected]
    assert counter("launches") > launches
    check_bound(*(engine.score([*prompt, *plain.ids]).logits[len(prompt) - 1:-1] for engine in pair), "q4f32_1")
    script = ScriptedDrafter([*prompt, *plain.ids], 0.6, pair.cpu.artifact.config.vocab_size, seed=1)
    drafted = pair.device.generate(prompt, 40, draft=script, tree_size=8)
    list(drafted)
    assert drafted.ids == plain.ids and max(drafted.stats.accept_lengths) > 1
