"""How fast this machine's memory reads: the bound that kernels are held against."""

from __future__ import annotations

import mmap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

SIZE = 512 << 20  # bytes, far beyond any processor cache


class ReadBandwidth:
    """Reads 512 MB with a number of threads, each a contiguous part, in huge pages where the system has them."""

    def __init__(self, threads: int) -> None:
        memory = mmap.mmap(-1, SIZE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        data = np.frombuffer(memory, np.int64)
        data[:] = 1  # pages that were never written share one page of zeros
        self._parts = np.array_split(data, threads)
        self._pool = ThreadPoolExecutor(threads)

    def measure(self) -> float:
        """GB/s of one reading: numpy's sum of integers, which waits for memory alone."""
        begin = time.perf_counter()
        list(self._pool.map(np.sum, self._parts))
        return SIZE / (time.perf_counter() - begin) / 1e9
