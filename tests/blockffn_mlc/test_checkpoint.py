"""Every form of a checkpoint reads back exactly, one tensor at a time."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import DTYPES, GQA, MLA, stored_tensor, write_config, write_random_checkpoint, write_tensors

from blockffn_mlc.checkpoint import expected_shapes, open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]


def check_equal(checkpoint, tensors):
    assert set(checkpoint.expected) == set(tensors)
    for name, expected in tensors.items():
        actual = checkpoint.read(name)
        assert actual.dtype == np.float32 and actual.flags.c_contiguous
        assert actual.shape == checkpoint.expected[name]
        np.testing.assert_array_equal(actual, expected)
        np.testing.assert_array_equal(checkpoint.read_rows(name, 3, 7), expected[3:7])


@pytest.mark.parametrize("layout", ["block", "block_linear", "experts", "megablocks"])
@pytest.mark.parametrize("format", ["safetensors", "sharded", "bin", "sharded_bin"])
def test_layouts_and_formats(tmp_path, layout, format):
    tensors = write_random_checkpoint(tmp_path, MLA, 1, layout, format)
    check_equal(open_checkpoint(tmp_path), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_dtypes(tmp_path, dtype, format):
    tensors = write_random_checkpoint(tmp_path, GQA, 2, format=format, dtype=dtype)
    check_equal(open_checkpoint(tmp_path), tensors)


@pytest.mark.parametrize("config", [replace(MLA, attention_bias=True), replace(GQA, attention_bias=True),
                                    replace(MLA, norm_after_router="sum", tie_word_embeddings=True),
                                    replace(GQA, tie_word_embeddings=False, rope_scaling_factor=2.0)])
def test_optional_tensors(tmp_path, config):
    tensors = write_random_checkpoint(tmp_path, config)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == config and checkpoint.folder == tmp_path
    check_equal(checkpoint, tensors)
    names = " ".join(tensors)
    assert ("router_norm" in names) == (config.norm_after_router == "rms")
    assert ("lm_head" in names) == (not config.tie_word_embeddings)
    biases = {name.split(".")[-2] for name in tensors if name.endswith(".bias")}
    biased = {"q_a_proj", "kv_a_proj_with_mqa", "o_proj"} if config.is_mla else {f"{kind}_proj" for kind in "qkvo"}
    assert biases == (biased if config.attention_bias else set())


@pytest.mark.parametrize("name", ["mla_block", "gqa_block_linear"])
def test_golden(name):
    checkpoint = open_checkpoint(GOLDEN / name)
    config = checkpoint.config
    released = safetensors.numpy.load_file(GOLDEN / name / "model.safetensors")
    tensors = {key: released[key].astype(np.float32) for key in checkpoint.expected}
    if config.ffn_type == "block_linear":
        for key, value in tensors.items():
            if key.endswith("up_proj"):
                tensors[key] = np.stack(np.split(value, config.num_experts, axis=0))
            elif key.endswith("down_proj"):
                tensors[key] = np.stack(np.split(value, config.num_experts, axis=1))
    check_equal(checkpoint, tensors)


def test_read_holds_one_tensor(tmp_path):
    """Reading all of a large checkpoint needs little memory beyond its largest tensor."""
    config = replace(GQA, hidden_size=512, expert_size=256, num_experts=32, num_hidden_layers=12, vocab_size=256)
    shapes = expected_shapes(config)
    write_tensors(tmp_path, dict(stored_tensor(config, name, np.zeros(shape, ml_dtypes.bfloat16), "block_linear")
                                 for name, shape in shapes.items()), "sharded")
    write_config(tmp_path, config)
    code = ("import resource, sys; from blockffn_mlc.checkpoint import open_checkpoint\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
            "checkpoint = open_checkpoint(sys.argv[1]); checkpoint.read('model.norm.weight'); before = peak()\n"
            "for name in checkpoint.expected: checkpoint.read(name)\n"
            "print(peak() - before)\n"
            "assert 'torch' not in sys.modules\n")
    run = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True, capture_output=True)
    grown = int(run.stdout)
    largest = 4 * max(int(np.prod(shape)) for shape in shapes.values())
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) > 10 * largest
    assert grown < 3 * largest


def test_linked_shards_load(tmp_path):
    """Download caches keep files elsewhere and link to them."""
    folder, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    tensors = write_random_checkpoint(folder, MLA, format="sharded")
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.glob("*.safetensors"))):
        os.replace(path, blobs / str(number))
        path.symlink_to(f"../blobs/{number}")
    check_equal(open_checkpoint(folder), tensors)
