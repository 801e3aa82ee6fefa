"""What a kernel takes of a multiprocessor, from the compiler's words, and how many therefore run at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .compilers import Compiler, Cubin

_WARP = 32
_REGISTERS = 1 << 16  # of a multiprocessor, in four parts with schedulers of their own
_PARTS, _REGISTER_UNIT = 4, 256  # registers of a warp are allotted in units
_SHARED_UNIT, _SHARED_RESERVED = 128, 1024  # bytes; each block gives the driver some


class Multiprocessor(NamedTuple):
    """CUDA C++ programming guide, table "Technical Specifications per Compute Capability"."""

    warps: int
    blocks: int
    shared_bytes: int


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 164 << 10), "sm_86": Multiprocessor(48, 16, 100 << 10),
    "sm_87": Multiprocessor(48, 16, 164 << 10), "sm_89": Multiprocessor(48, 24, 100 << 10),
    "sm_90": Multiprocessor(64, 32, 228 << 10), "sm_100": Multiprocessor(64, 32, 228 << 10),
}


class Usage(NamedTuple):
    """Of one kernel: registers of a thread; bytes of its stack, and how many it stores to and loads from there because
    registers do not suffice; bytes of shared memory of a block."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def read_log(log: str) -> dict[str, Usage]:
    """Every kernel of ``Cubin.log``."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        def number(pattern: str, part: str = part) -> int:
            match = re.search(rf"(\d+) {pattern}", part)
            return int(match[1]) if match else 0

        found[part.partition("'")[0]] = Usage(number("registers"), number("bytes stack frame"),
                                              number("bytes spill stores"), number("bytes spill loads"),
                                              number("bytes smem"))
    return found


def block_sizes(source: str) -> dict[str, int]:
    """Threads of a block of every kernel, from its text."""
    return {name: int(threads) for threads, name in re.findall(r"__launch_bounds__\((\d+), \d+\) (\w+)\(", source)}


def occupancy(usage: Usage, threads: int, architecture: str) -> float | None:
    """Share of a multiprocessor's warps that are there at once when enough blocks wait: an upper bound, as all
    arithmetic with it. None for architectures whose numbers are not in the table."""
    chip = MULTIPROCESSORS.get(architecture)
    if chip is None:
        return None
    warps = -(-threads // _WARP)
    per_warp = _up(max(usage.registers, 1) * _WARP, _REGISTER_UNIT)
    by_registers = _REGISTERS // _PARTS // per_warp * _PARTS // warps
    by_shared = chip.shared_bytes // _up(usage.shared + _SHARED_RESERVED, _SHARED_UNIT)
    return min(chip.blocks, chip.warps // warps, by_registers, by_shared) * warps / chip.warps


def report(compiler: Compiler, source: str, cubins: Sequence[Cubin]) -> dict[str, Any]:
    """For JSON: the compiler, and of every kernel the threads of a block and its usage on each architecture."""
    threads, usages = block_sizes(source), {cubin.architecture: read_log(cubin.log) for cubin in cubins}
    return {"compiler": compiler.name, "kernels": {name: {"threads": count, **{
        architecture: {**usage[name]._asdict(), "occupancy": occupancy(usage[name], count, architecture)}
        for architecture, usage in usages.items()}} for name, count in sorted(threads.items())}}


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
