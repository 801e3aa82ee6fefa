"""Tensor cores, where they are asked for."""

import re
from dataclasses import replace

import pytest
import tvm

from runtime_py.devices import kind_of_target
from schedules import gpu
from schedules.tiles import GPU_TILES
from targets import find_target
from targets.cuda.report import read_log

TILES = find_target("cuda:mma").tiles


def source_of(**functions):
    module = tvm.IRModule({name: func.with_attr("global_symbol", name) for name, func in functions.items()})
    return tvm.compile(module, find_target("cuda").tvm_target).mod.imports[0].inspect_source("")


@pytest.fixture(scope="module")
def source():
    return source_of(linear=gpu.linear(TILES, 320, 97, "float16", residual_scale=0.3),
                     sparse_down=gpu.sparse_down(TILES, 12, 97, 64, "float16", 0.3),
                     sparse_up=gpu.sparse_up(TILES, 12, 320, 40, "float16"))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_87", "sm_90"])
def test_the_compiler_takes_it_without_spills(compiler, source, architecture):
    usages = read_log(compiler.cubin(source, architecture).log)
    assert len(usages) == 15 and not any(usage.spill_stores or usage.spill_loads for usage in usages.values())


def test_it_takes_passes_of_9_to_64_tokens(source):
    """One form of each kernel, the one before that of long passes."""
    texts = re.split("// Function: ", source)[1:]
    assert ["tvm_builtin_ptx_mma" in text for text in texts] == 3 * [False, False, False, True, False]


def test_it_is_asked_for_by_a_target_of_its_own():
    plain, mma = find_target("cuda"), find_target("cuda:mma")
    assert not plain.tiles.tensor_cores and mma.tiles == replace(plain.tiles, tensor_cores=True)
    assert kind_of_target(mma.name) == "cuda" and mma.file_name == "cuda-mma"


def test_elsewhere_there_is_none():
    """In other formats, where inputs are no multiple of 32, unless it is asked for."""
    assert "mma" not in source_of(
        floats=gpu.linear(TILES, 64, 64, "float32"), codes=gpu.linear(TILES, 64, 64, "q4f16_1"),
        ragged=gpu.linear(TILES, 40, 64, "float16"), off=gpu.linear(GPU_TILES["cuda"], 64, 64, "float16"))
