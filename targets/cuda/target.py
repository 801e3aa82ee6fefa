"""The targets "cuda" and "cuda:mma"."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import tvm

import schedules.gpu
from blockffn_mlc.errors import UserError
from blockffn_mlc.target import Target
from schedules.tiles import GPU_TILES

from ..cpu import plain_host
from ..limits import Limits
from ..tools import host_library
from .compilers import INSTALL, find_compiler
from .module import export_library

# Static shared memory ends at 48 KB on every device, a block at 1024 threads, a grid at
# 65535 blocks along y and z. Buffers: elements are counted in int32.
# NVIDIA's compilers take long texts; the statements are those of OpenCL on computers.
LIMITS = Limits(work_group=1024, threadgroup_bytes=48 << 10, buffer_bytes=(1 << 31) - 1, statements=1000,
                source_bytes=1 << 18, groups=65535)
ARCHITECTURES = "sm_80,sm_87,sm_90"  # A100, Jetson Orin, H100; others run the code of an older one of their generation
_MMA_SINCE = 80  # architectures whose tensor cores have the instruction of schedules/gpu/tensor_cores.py
_NO_COMPILER = "no CUDA compiler was found"
_NOTE = (f"cuda: {_NO_COMPILER}: the library will hold source, which a program that imports tvm compiles; "
         f"for machine code: {INSTALL}")


def cuda_target(name: str, tensor_cores: bool = False, architectures: str | None = None) -> Target:
    """Target ``name`` for the ``architectures`` of ``--arch``, names separated by commas (None: ARCHITECTURES);
    host code for every processor of this architecture. Raises UserError for architectures that the compiler here does
    not know or whose tensor cores cannot be used, and when some are asked for where there is no compiler."""
    wanted, compiler = _parse(architectures or ARCHITECTURES), find_compiler()
    if tensor_cores and _number(wanted[0]) < _MMA_SINCE:
        raise UserError(f"--arch {wanted[0]}: target {name} takes tensor cores as of sm_{_MMA_SINCE}; leave it out or "
                        "choose --target cuda")
    if compiler is None:
        if architectures:
            raise UserError(f"--arch {architectures}: {_NO_COMPILER}; install one ({INSTALL}), or leave --arch out for "
                            "a library that holds source")
    elif unknown := [name for name in wanted if name not in compiler.architectures()]:
        raise UserError(f"--arch {unknown[0]}: {compiler.name} does not compile for it; choose of "
                        f"{', '.join(compiler.architectures())}")
    host, text = plain_host()
    tvm_target = tvm.target.Target({"kind": "cuda", "arch": wanted[0], "max_num_threads": LIMITS.work_group,
                                    "max_threads_per_block": LIMITS.work_group,
                                    "max_shared_memory_per_block": LIMITS.threadgroup_bytes}, host=host)
    return Target(name, text, tvm_target, schedules.gpu, replace(GPU_TILES["cuda"], tensor_cores=tensor_cores),
                  (host_library(),), LIMITS, export=partial(export_library, architectures=wanted),
                  note=None if compiler else _NOTE)


def _parse(architectures: str) -> list[str]:
    """The names, oldest first, each once."""
    names = architectures.split(",")
    for name in names:
        if not re.fullmatch(r"sm_\d{2,3}", name):
            raise UserError(f"--arch {architectures}: {name!r} is no architecture; expected names such as sm_80, "
                            "separated by commas")
    return sorted(set(names), key=_number)


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))
