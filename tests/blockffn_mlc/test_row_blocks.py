"""Weights that are cut into blocks of rows for a device with small buffers."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import GQA, MLA

from blockffn_mlc.builder import make_plan
from blockffn_mlc.compile import build_graph
from blockffn_mlc.layers import READ
from blockffn_mlc.random_model import RandomCheckpoint
from targets import find_target

LARGEST = {"q0f32": 8192, "q4f16_1": 1200}  # bytes of 32 rows of the embedding, about


@pytest.mark.parametrize("config", [MLA, replace(GQA, tie_word_embeddings=True)], ids=["mla", "tied"])
@pytest.mark.parametrize("quantization", ["q0f32", "q4f16_1"])
def test_blocks_hold_the_whole_weights(config, quantization):
    plan = make_plan(config, find_target("opencl"), quantization, 64, 16)
    whole, split = ({name: parameter for name, parameter in graph.parameters} for graph in (
        plan.graph, build_graph(replace(plan.build, largest_buffer=LARGEST[quantization]))))
    source = RandomCheckpoint(config, "blocks")
    blocks = {}
    for name in split:
        weight, _, number = name.rpartition(".")
        if number.isdigit() and weight in whole:
            blocks.setdefault(weight, []).append(name)
            values = split[name].attrs[READ](source)
            assert values.shape == tuple(map(int, split[name].shape))
            assert values.nbytes <= LARGEST[quantization] or weight != "embed_tokens.weight"
    assert "embed_tokens.weight" in blocks and ("lm_head.weight" in blocks) != config.tie_word_embeddings
    for weight, names in blocks.items():
        assert len(names) > 1
        assert np.array_equal(np.concatenate([split[name].attrs[READ](source) for name in names]),
                              whole[weight].attrs[READ](source))
    assert set(split) - {name for names in blocks.values() for name in names} == set(whole) - set(blocks)
