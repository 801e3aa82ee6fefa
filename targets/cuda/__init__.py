"""The CUDA family: GPUs of NVIDIA, kernels as machine code (docs/cuda.md)."""

import tvm_ffi
from tvm.tirx.op import register_intrin_lowering

from ..packing import keep_source
from .compilers import CUDA_COMPILER
from .target import cuda_target
from .text import completed, popcount

__all__ = ["CUDA_COMPILER", "cuda_target"]

keep_source("cuda")
tvm_ffi.register_global_func("tvm_callback_cuda_postproc", completed)  # TVM's name
register_intrin_lowering("tirx.popcount", target="cuda", f=popcount, level=99)
