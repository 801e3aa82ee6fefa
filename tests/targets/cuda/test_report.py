"""What a kernel takes of a multiprocessor."""

import os
import subprocess

import pytest

from targets.cuda.compilers import Nvrtc
from targets.cuda.report import MULTIPROCESSORS, Usage, block_sizes, occupancy, read_log

LOG = """ptxas info    : 45 bytes gmem, 192 bytes cmem[4]
ptxas info    : Compiling entry function 'small' for 'sm_90'
ptxas info    : Function properties for small
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 388 bytes cmem[0]
ptxas info    : Compiling entry function 'large_kernel_1' for 'sm_90'
ptxas info    : Function properties for large_kernel_1
    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 8192 bytes smem
"""
CALCULATOR = """
#include <cstdlib>
#include <cstdio>
#include "cuda_occupancy.h"
// Warps of a multiprocessor: major, minor, warps, blocks, shared memory, then registers, threads, shared memory.
int main(int, char** given) {
  int v[9];
  for (int i = 1; i < 9; ++i) v[i] = std::atoi(given[i]);
  cudaOccDeviceProp chip;
  chip.computeMajor = v[1], chip.computeMinor = v[2], chip.maxThreadsPerBlock = 1024;
  chip.maxThreadsPerMultiprocessor = 32 * v[3], chip.regsPerBlock = chip.regsPerMultiprocessor = 65536;
  chip.warpSize = 32, chip.sharedMemPerBlock = 49152, chip.sharedMemPerMultiprocessor = v[5];
  chip.numSms = 1, chip.sharedMemPerBlockOptin = v[5] - 1024, chip.reservedSharedMemPerBlock = 1024;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = 1024, kernel.numRegs = v[6], kernel.sharedSizeBytes = v[8];
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF, kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_DEFAULT;
  kernel.maxDynamicSharedSizeBytes = 0;
  cudaOccDeviceState state;
  cudaOccResult result;
  const int code = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &chip, &kernel, &state, v[7], 0);
  std::printf("%d %d\\n", code, result.activeBlocksPerMultiprocessor);
}
"""


def test_usage_is_read():
    assert read_log(LOG) == {"small": Usage(12, 0, 0, 0, 0), "large_kernel_1": Usage(255, 24, 20, 16, 8192)}
    assert read_log("nothing") == {}


def test_threads_are_read():
    text = ('extern "C" __global__ void __launch_bounds__(128, 4) a_kernel(float* x, int n);\n'
            'extern "C" __global__ void __launch_bounds__(128, 4) a_kernel(float* x, int n) {\n}\n'
            'extern "C" __global__ void __launch_bounds__(32, 16) b(int n) {\n}\n')
    assert block_sizes(text) == {"a_kernel": 128, "b": 32}


@pytest.fixture(scope="module")
def calculator(tmp_path_factory):
    """NVIDIA's own calculation: blocks of a multiprocessor."""
    packages = Nvrtc.find()
    if packages is None:
        pytest.skip("no packages of NVIDIA's; install: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime")
    folder = tmp_path_factory.mktemp("calculator")
    (folder / "main.cc").write_text(CALCULATOR)
    subprocess.run([os.environ.get("CXX", "c++"), f"-I{packages / 'include'}", "-w", "-o", folder / "main",
                    folder / "main.cc"], check=True)

    def blocks(name, usage, threads):
        number, chip = int(name.removeprefix("sm_")), MULTIPROCESSORS[name]
        values = [number // 10, number % 10, chip.warps, chip.blocks, chip.shared_bytes, usage.registers, threads,
                  usage.shared]
        code, found = map(int, subprocess.run([folder / "main", *map(str, values)], check=True, capture_output=True,
                                              text=True).stdout.split())
        assert code == 0
        return found
    return blocks


@pytest.mark.parametrize("name", ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90"])
def test_occupancy_is_nvidias(calculator, name):
    chip = MULTIPROCESSORS[name]
    for registers, threads, shared in ((20, 32, 0), (32, 256, 1024), (40, 256, 12288), (59, 256, 16384),
                                       (64, 128, 28672), (79, 256, 8448), (126, 256, 16384), (255, 256, 40000)):
        usage = Usage(registers, 0, 0, 0, shared)
        blocks = calculator(name, usage, threads)
        assert occupancy(usage, threads, name) == min(blocks, chip.blocks) * -(-threads // 32) / chip.warps


def test_unknown_chips_have_no_occupancy():
    assert occupancy(Usage(32, 0, 0, 0, 0), 256, "sm_75") is None
