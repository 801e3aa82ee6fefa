"""What this process allocates, to notice leaks."""

import ctypes
import gc
import re
from pathlib import Path
from typing import NamedTuple

ROUNDS = 2


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]


class Memory(NamedTuple):
    """Bytes: ``allocated`` by malloc and not freed (0 where the C library does not tell), ``resident`` in memory."""

    allocated: int
    resident: int


def process_memory():
    gc.collect()
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", lambda: _Mallinfo())
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    resident = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]
    return Memory(found.uordblks + found.hblkhd, int(resident) << 10)


def growth(run):
    """By how much every call of ``run`` makes the process grow: the least of some calls, since what is allocated once,
    such as a driver's larger table, is no leak."""
    grown, before = [], process_memory()
    for _ in range(ROUNDS):
        run()
        after = process_memory()
        grown.append(Memory(*(b - a for a, b in zip(before, after))))
        before = after
    return Memory(*map(min, zip(*grown)))
