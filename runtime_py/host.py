"""Whether this machine can run a library's instructions: a sentence instead of SIGILL."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

from blockffn_mlc.errors import UserError

# Vector unit of a library -> flags that the Linux kernel reports for it.
_AVX2 = {"avx2", "fma", "f16c", "bmi2"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_NEEDED_FLAGS = {"avx512vnni": _AVX512 | {"avx512_vnni"}, "avx512": _AVX512, "avxvnni": _AVX2 | {"avx_vnni"},
                 "avx2": _AVX2, "sse": set(), "dotprod": {"asimddp"}, "neon": set()}
_AT_HWCAP, _HWCAP_ASIMDDP = 16, 1 << 20  # of Linux on 64-bit ARM


def check_host(host: str, where: str | Path, target: str = "cpu") -> None:
    """``host`` is "MACHINE PROCESSOR, UNIT", for example "x86_64 znver4, avx512". ``target``: to rebuild for.

    Raises UserError when this machine is another architecture or (on Linux) lacks the vector unit.
    """
    machine, _, rest = host.partition(" ")
    unit = rest.rpartition(", ")[2]
    rebuild = f"rebuild it on this machine with: python build.py --target {target} --model MODEL"
    if machine != platform.machine():
        raise UserError(f"{where}: compiled for {host}, this machine is {platform.machine()}; {rebuild}")
    missing = missing_flags(unit)
    if missing:
        raise UserError(f"{where}: compiled for {host}, this processor lacks {', '.join(sorted(missing))}; {rebuild}")


def missing_flags(unit: str) -> set[str]:
    """Flags of a vector unit that this machine lacks; none where the system does not tell."""
    flags = _cpu_flags()
    return _NEEDED_FLAGS.get(unit, set()) - flags if flags else set()


def _cpu_flags() -> set[str]:
    """Instruction sets of the first processor; empty where the system does not tell."""
    if sys.platform == "linux" and platform.machine() == "aarch64":  # emulators may show another's /proc/cpuinfo
        return {"asimd", *(["asimddp"] if ctypes.CDLL(None).getauxval(_AT_HWCAP) & _HWCAP_ASIMDDP else [])}
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return set(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())
