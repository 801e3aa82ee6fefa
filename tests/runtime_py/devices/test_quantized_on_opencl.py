"""4-bit weights with everything else in float32 (q4f32_1), on OpenCL devices that lack half precision."""

from pathlib import Path

import numpy as np
import pytest
from building import build
from greedy import check_no_tie
from machine import opencl_device
from opencl_kernels import counter

from runtime_py import Engine
from runtime_py.drafters.scripted import ScriptedDrafter

MODEL = Path(__file__).resolve().parents[2] / "golden" / "mla_block"


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """The same weights on a device and on the processor, and ids to begin with."""
    device = opencl_device()
    folder = tmp_path_factory.mktemp("q4f32")
    build("--model", MODEL, "--quantization", "q4f32_1", "--activations", "f32", "--target",
          "opencl,cpu", "-o", folder, "-q")
    on_device, on_cpu = (Engine.load(path, device=name) for path, name in (
        (next(folder.glob("*opencl")), device.name), (next(folder.glob("*cpu")), "cpu")))
    with np.load(MODEL / "expected.npz") as arrays:
        return on_device, on_cpu, arrays["ids"][0].tolist()


def test_nothing_is_in_half_precision(engines):
    for engine in engines[:2]:
        assert engine.artifact.cache_dtype == "float32"
        assert {str(weight.dtype) for weight in engine.artifact.weights.values()} <= {"float32", "uint32", "int32"}


def test_greedy_tokens_are_those_of_the_processor(engines):
    on_device, on_cpu, ids = engines
    launches, prompt = counter("launches"), ids[:12]
    plain, expected = (engine.generate(prompt, 40, draft="none") for engine in (on_device, on_cpu))
    assert [token.id for token in plain] == [token.id for token in expected]
    assert counter("launches") > launches
    found, logits = (np.asarray(engine.score([*prompt, *plain.ids]).logits)[len(prompt) - 1:-1]
                     for engine in (on_device, on_cpu))
    bound = 2 * check_no_tie(logits, "float32")  # random weights amplify differences more than the demo's
    second, first = np.partition(logits, -2)[:, -2:].T
    assert (first - second).min() > bound >= 2 * np.abs(found - logits).max()
    script = ScriptedDrafter([*prompt, *plain.ids], 0.6, on_device.artifact.config.vocab_size, seed=1)
    drafted = on_device.generate(prompt, 40, draft=script, tree_size=8)
    list(drafted)
    assert drafted.ids == plain.ids and max(drafted.stats.accept_lengths) > 1
