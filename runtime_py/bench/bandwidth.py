"""How fast this machine's memory reads: the bound that kernels are held against."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .machine import available_memory

SIZE = 512 << 20  # bytes, far beyond any processor cache


class ReadBandwidth:
    """Reads 512 MB with a number of threads, each a contiguous part; numpy asks for huge pages by itself."""

    def __init__(self, threads: int) -> None:
        data = np.ones(SIZE // 8, np.int64)  # pages that were never written would share one page of zeros
        self._parts = np.array_split(data, threads)
        self._pool = ThreadPoolExecutor(threads)

    def measure(self) -> float:
        """GB/s of one reading: numpy's sum of integers, which waits for memory alone."""
        begin = time.perf_counter()
        list(self._pool.map(np.sum, self._parts))
        return SIZE / (time.perf_counter() - begin) / 1e9


def read_bandwidth(threads: int) -> float | None:
    """GB/s that memory reads with so many threads: the median of five readings; None where memory is short."""
    free = available_memory()
    if free is not None and free < 2 * SIZE:
        return None
    memory = ReadBandwidth(threads)
    return statistics.median(memory.measure() for _ in range(5))
