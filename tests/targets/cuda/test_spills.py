"""Registers suffice where they matter most: in kernels of one token, which wait for memory."""

from dataclasses import replace

import pytest
import tvm
from gpu_kernels import kernels

from schedules import gpu
from schedules.tiles import GPU_TILES
from targets import find_target
from targets.cuda.report import read_log
from targets.limits import kernel_sources


@pytest.fixture(scope="module")
def source():
    """CUDA C++ of every kernel, in its form for one token."""
    built = kernels(replace(GPU_TILES["cuda"], token_tiles=(1,), prefill_tile=0)).values()
    assert {kernel.factory.name for kernel in built} == {
        name for name in gpu.__all__ if callable(getattr(gpu, name))}
    module = tvm.IRModule({kernel.name: kernel.func.with_attr("global_symbol", kernel.name) for kernel in built})
    return tvm.compile(module, find_target("cuda").tvm_target).mod.imports[0].inspect_source("")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_87", "sm_90"])
def test_no_kernel_of_one_token_spills(compiler, source, architecture):
    usages = read_log(compiler.cubin(source, architecture).log)
    assert set(usages) == set(kernel_sources(source))
    assert {name: usage for name, usage in usages.items() if usage.spill_stores or usage.spill_loads} == {}
