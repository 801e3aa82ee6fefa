"""The demo model on OpenCL devices: the processor's greedy text, with and without drafts."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from building import build
from greedy import check_bound
from machine import opencl_device
from opencl_kernels import counter

from runtime_py import Engine
from schedules.tiles import CPU_TILES

PROMPT, TOKENS, TREE = "In the beginning", 40, 8  # few rows at a time: every other form of a kernel is compiled, too


class Demo(NamedTuple):
    """The same format on both."""

    cpu: Engine
    device: Engine


@pytest.fixture(scope="module", params=[("q0f32", False), ("q4f16_1", True)], ids=lambda param: param[0])
def demo(request, tmp_path_factory):
    quantization, half = request.param
    device, folder = opencl_device(half), tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        for name, row in CPU_TILES.items():  # more sizes take long to compile and change no result
            patch.setitem(CPU_TILES, name, replace(row, token_tiles=(1,), q4_token_tiles=(1,)))
        build("--target", "cpu,opencl", "--quantization", quantization, "--activations", "f32", "-o", folder, "-q")
    return Demo(Engine.load(folder / "cpu"), Engine.load(folder / "opencl", device=device.name))


@pytest.fixture(scope="module")
def greedy(demo):
    """The prompt, and what the processor says behind it."""
    prompt = demo.cpu.encode(PROMPT)
    generation = demo.cpu.generate(prompt, TOKENS, draft="none")
    list(generation)
    assert len(prompt) <= TREE and len(generation.ids) == TOKENS
    return prompt, generation.ids


def test_logits_differ_by_less_than_would_change_a_token(demo, greedy):
    prompt, ids = greedy
    logits, others = (engine.score([*prompt, *ids], TREE).logits[len(prompt) - 1:-1] for engine in demo)
    assert logits.argmax(-1).tolist() == ids
    check_bound(logits, np.asarray(others), demo.cpu.artifact.cache_dtype)


@pytest.mark.parametrize("draft", ["none", "ngram", "eagle"])
def test_the_text_is_the_processors(demo, greedy, draft):
    launches = counter("launches")
    generation = demo.device.generate(greedy[0], TOKENS, draft=draft, tree_size=None if draft == "none" else TREE)
    list(generation)
    assert generation.ids == greedy[1]
    assert counter("launches") - launches > 10 * generation.stats.passes > 0
    assert draft == "none" or max(generation.stats.accept_lengths) > 2
