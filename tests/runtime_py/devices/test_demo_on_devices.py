"""The demo model on devices: the processor's greedy text, with and without drafts."""

from functools import partial

import numpy as np
import pytest
from counters import counter
from greedy import Pair, check_bound
from machine import opencl_device, vulkan_device

PROMPT, TOKENS, TREE = "In the beginning", 40, 8  # few rows at a time: every other form of a kernel is compiled, too


DEVICES = {"q0f32-opencl": opencl_device, "q4f32_1-opencl": opencl_device,
           "q0f16-opencl": partial(opencl_device, half=True), "q4f16_1-opencl": partial(opencl_device, half=True),
           "q4f16_1-vulkan": vulkan_device, "q0f32-vulkan": vulkan_device}


@pytest.fixture(scope="module", params=DEVICES)
def demo(request, tmp_path_factory):
    device = DEVICES[request.param]()
    return Pair.build(device, tmp_path_factory.mktemp("demo"), "--quantization", request.param.split("-")[0])


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
    check_bound(logits, np.asarray(others), demo.quantization)


@pytest.mark.parametrize("draft", ["none", "ngram", "eagle"])
def test_the_text_is_the_processors(demo, greedy, draft):
    kind = demo.device.device.kind
    launches = counter(kind, "launches")
    generation = demo.device.generate(greedy[0], TOKENS, draft=draft, tree_size=None if draft == "none" else TREE)
    list(generation)
    assert generation.ids == greedy[1]
    assert counter(kind, "launches") - launches > 10 * generation.stats.passes > 0
    assert draft == "none" or max(generation.stats.accept_lengths) > 2
