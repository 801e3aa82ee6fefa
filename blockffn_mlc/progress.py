"""Progress of a build on stderr: one line per step, a bar for long ones; silent with -q."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Reports steps and byte counts; ``quiet`` silences it."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)

    def note(self, text: str) -> None:
        """One line of information."""
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step of unknown length: a spinner, then its time."""
        start = time.monotonic()
        with self._console.status(name):
            yield
        self.note(f"{name:12}{time.monotonic() - start:7.1f} s")

    @contextmanager
    def stages(self, name: str, names: Sequence[str]) -> Iterator[Callable[[str], None]]:
        """A bar over named stages; call the result with each name as it begins."""
        start = time.monotonic()
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with self._bar(*columns) as bar:
            task = bar.add_task(name, total=len(names))
            yield lambda stage: bar.update(task, completed=names.index(stage), description=f"{name}: {stage}")
        self.note(f"{name:12}{time.monotonic() - start:7.1f} s")

    @contextmanager
    def bytes(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar over ``total`` bytes; call the result with each number of bytes done."""
        start = time.monotonic()
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
        with self._bar(*columns) as bar:
            task = bar.add_task(name, total=total)
            yield lambda done: bar.advance(task, done)
        self.note(f"{name:12}{time.monotonic() - start:7.1f} s  {total / 1e6:.1f} MB")

    def _bar(self, *columns: ProgressColumn) -> RichProgress:
        """Not drawn in a file, where it would leave empty lines."""
        return RichProgress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
