"""A row for each engine and a column for each test, as in the README and in docs/peers.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from runtime_py.bench.records import Record
from runtime_py.bench.render import warnings
from runtime_py.bench.tables import line, rule
from runtime_py.bench.tasks import GENERATE


def to_table(records: Sequence[Record]) -> str:
    """Milliseconds as Markdown, medians with their range: of decoding per token, of other tests in all."""
    tests = {record["test"]: record for record in records}
    engines = {(record["artifact"], record["mode"]): record for record in records}
    cells = {(record["artifact"], record["mode"], record["test"]): _cell(record) for record in records}
    headings = [name + (", per token" if record["kind"] == GENERATE else "") for name, record in tests.items()]
    lines = [line(["ms", *headings, "load", "memory"]), rule(len(tests) + 3)]
    for (artifact, mode), record in engines.items():
        lines.append(line([f"{artifact}, {mode}", *(cells.get((artifact, mode, test), "") for test in tests),
                           f"{record['load_s']:.1f} s", _memory(record["peak_memory_bytes"])]))
    return "\n".join([*lines, "", f"{records[0]['rounds']} rounds, all in turn",
                      *(f"warning: {text}" for text in warnings(records))])


def _cell(record: Record) -> str:
    times = [1e3 * seconds / (record["tokens"] if record["kind"] == GENERATE else 1) for seconds in record["seconds"]]
    return f"{_three(statistics.median(times))} ({_three(min(times))}-{_three(max(times))})"


def _three(value: float) -> str:
    """Three digits or more."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _memory(size: int | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f} GB"
