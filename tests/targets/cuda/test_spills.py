"""Registers suffice where they matter most: in kernels of one token, which wait for memory."""

from dataclasses import replace

import pytest
import tvm
from gpu_kernels import kernels

from schedules import gpu
from schedules.tiles import GPU_TILES
from targets import find_target
from targets.cuda.module import compile_kernels
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


def test_kernels_that_spill_get_more_registers(compiler):
    """Which ones do changes with the compiler; so here all have too few."""
    func = gpu.sparse_down(GPU_TILES["cuda"], 40, 320, 64, "q4f16_1", 0.3).with_attr("global_symbol", "down")
    source = tvm.compile(tvm.IRModule({"down": func}), find_target("cuda").tvm_target).mod.imports[0].inspect_source("")
    tight = source.replace("__launch_bounds__(256, 2)", "__launch_bounds__(256, 4)")  # 64 registers
    spilled = {name for name, usage in read_log(compiler.cubin(tight, "sm_80").log).items() if usage.spill_stores}
    text, (cubin,) = compile_kernels(compiler, tight, ["sm_80"])
    usages = read_log(cubin.log)
    assert spilled and not any(usage.spill_stores or usage.spill_loads for usage in usages.values())
    assert {name for name in usages if f"__launch_bounds__(256, 4) {name}(" not in text} == spilled < set(usages)
