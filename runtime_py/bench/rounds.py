"""What the benchmarks share: options and reports, measuring processes, figures of several rounds."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from blockffn_mlc.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the kernel benchmark measures; ``unions``: shares of the experts to force, in ascending order, or none."""

    artifact: str
    threads: tuple[int, ...]
    tokens: tuple[int, ...]
    unions: tuple[float, ...]
    depth: int
    repeat: int


@dataclass(frozen=True)
class Report:
    """``facts`` of the run, and tables of rows by title."""

    facts: dict[str, Any]
    tables: dict[str, list[Row]]


@contextmanager
def process(setup: Any) -> Iterator[Callable[..., Any]]:
    """A process of its own for ``setup``: gives a function that calls ``task(setup, *arguments)`` there."""
    with ProcessPoolExecutor(1, get_context("spawn"), depend_on_parent) as pool:
        yield lambda task, *arguments: _result(pool, task, setup, *arguments)


def depend_on_parent() -> None:
    """Ctrl-C is the parent's business; and when it is gone, however that came, so is this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(process: Any) -> None:
    process.join()
    os._exit(1)


def _result(pool: ProcessPoolExecutor, task: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return pool.submit(task, *arguments).result()
    except BrokenProcessPool:
        raise UserError("the measuring process was ended from outside (out of memory?); free memory and "
                        "run fewer --threads at a time") from None


def spread(name: str, values: Sequence[float], scale: float = 1.0) -> Row:
    """Median, least and most."""
    return {name: statistics.median(values) * scale, f"{name}_min": min(values) * scale,
            f"{name}_max": max(values) * scale}
