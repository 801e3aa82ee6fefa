"""The CPU family: this machine by default, any processor that LLVM knows by name, or 64-bit ARM."""

from __future__ import annotations

import platform
from pathlib import Path

import tvm
from tvm.target import codegen

import schedules.cpu
from blockffn_mlc.errors import UserError
from blockffn_mlc.target import Target
from schedules.tiles import CPU_TILES

from .tools import arm_library, host_library

_X86_FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512vnni", "avx512bf16", "avx512fp16",
                 "avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512bitalg", "avx512vpopcntdq", "avxvnni", "avx2", "avx",
                 "fma", "f16c", "bmi2", "gfni", "vaes", "vpclmulqdq")


_AARCH64 = "aarch64-linux-gnu"


def cpu_target(cpu: str = "native") -> Target:
    """The target for ``cpu``: "native" or an LLVM processor name of this machine's architecture.

    Raises UserError for a name LLVM does not know.
    """
    name = codegen.llvm_get_system_cpu() if cpu == "native" else cpu
    plain = tvm.target.Target({"kind": "llvm", "mcpu": name}) if _known(name) else None
    if plain is None:
        raise UserError(f"--cpu {cpu}: not a processor LLVM knows for {platform.machine()}; expected 'native' or a "
                        "name such as x86-64-v3, skylake-avx512, znver4 (llc -mcpu=help lists them)")
    features = {str(feature) for feature in codegen.llvm_get_cpu_features(plain)}
    # A library for a named processor keeps to what all with its vector unit have: half-precision arithmetic is rare.
    missing = features & (_missing_here() if cpu == "native" else {"avx512fp16"})
    unit = vector_unit(features - missing)
    attributes = sorted(f"-{feature}" for feature in missing)
    if unit.startswith("avx512"):
        attributes.append("-prefer-256-bit")  # LLVM would halve our 512-bit vectors on some Intel cores
    tvm_target = tvm.target.Target({"kind": "llvm", "mcpu": name, **({"mattr": attributes} if attributes else {})})
    return Target("cpu", f"{platform.machine()} {name}, {unit}", tvm_target, schedules.cpu, CPU_TILES[unit],
                  (host_library(),))


def aarch64_target(cpu: str = "native") -> Target:
    """The target for 64-bit ARM Linux, from any machine: every such processor, or an LLVM processor name.

    Raises UserError for a name LLVM does not know.
    """
    name = "generic" if cpu == "native" else cpu
    any_processor = tvm.target.Target({"kind": "llvm", "mtriple": _AARCH64})
    if name not in {str(known) for known in codegen.llvm_get_cpu_archlist(any_processor)}:
        raise UserError(f"--cpu {cpu}: not a processor LLVM knows for aarch64; expected a name such as cortex-a76, "
                        "neoverse-n1, apple-m1")
    tvm_target = tvm.target.Target({"kind": "llvm", "mtriple": _AARCH64, "mcpu": name})
    unit = vector_unit({str(feature) for feature in codegen.llvm_get_cpu_features(tvm_target)})
    return Target("cpu:aarch64", f"aarch64 {name}, {unit}", tvm_target, schedules.cpu, CPU_TILES[unit],
                  (arm_library(),))


def plain_host() -> tuple[tvm.target.Target, str]:
    """For code beside a device's kernels: every processor of this machine's architecture, and its description."""
    plain = tvm.target.Target({"kind": "llvm"})
    unit = vector_unit({str(feature) for feature in codegen.llvm_get_cpu_features(plain)})
    return plain, f"{platform.machine()} generic, {unit}"


def vector_unit(features: set[str]) -> str:
    """Row of the tile table for a set of LLVM feature names."""
    if "avx512f" in features:
        return "avx512vnni" if "avx512vnni" in features else "avx512"
    if {"avx2", "fma"} <= features:
        return "avxvnni" if "avxvnni" in features else "avx2"
    if "neon" in features:
        return "dotprod" if "dotprod" in features else "neon"
    return "sse"


def _known(name: str) -> bool:
    generic = tvm.target.Target({"kind": "llvm"})
    if name not in {str(cpu) for cpu in codegen.llvm_get_cpu_archlist(generic)}:
        return False
    # LLVM aborts the process when asked for 64-bit code for a 32-bit processor.
    features = codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": name}))
    return platform.machine() != "x86_64" or "64bit" in {str(feature) for feature in features}


def _missing_here() -> set[str]:
    """Features that LLVM infers from the processor's model but a hypervisor or kernel withholds."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        return set()
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    present = {flag.replace("_", "") for flag in flags}
    return {feature for feature in _X86_FEATURES if feature not in present}
