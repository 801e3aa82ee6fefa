"""Two runs of the benchmark against each other: ratios of speed with their spread, and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockffn_mlc.errors import UserError

from .records import Record
from .tables import line, number, rule

FEWEST_ROUNDS = 3
FASTER, SLOWER, SAME, UNKNOWN = "faster", "slower", "same", "too few rounds"
_FIELDS = ("artifact", "device", "threads", "mode", "draft")


@dataclass(frozen=True)
class Comparison:
    """``ratio`` of B's tokens per second to A's, of medians; ``low``, ``high``: B's slowest round against A's fastest,
    and the other way round."""

    key: tuple[Any, ...]
    before: float
    after: float
    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def verdict(self) -> str:
        """SLOWER where every round of B was slower than every round of A, FASTER the other way round."""
        if self.rounds < FEWEST_ROUNDS:
            return UNKNOWN
        return SLOWER if self.high < 1 else FASTER if self.low > 1 else SAME


def compare(first: Sequence[Record], second: Sequence[Record]) -> tuple[list[Comparison], list[str]]:
    """Records of the same test against each other, and notes: what is compared, and what has no counterpart. A field
    that has one value in each file may differ: it is what is compared. Raises UserError where nothing has a counterpart
    or a file holds a test twice."""
    notes, fields = [], ["test"]
    for field in _FIELDS:
        values = [list(dict.fromkeys(record[field] for record in records)) for records in (first, second)]
        if any(len(found) > 1 for found in values):
            fields.append(field)
        elif values[0] != values[1]:
            notes.append(f"{field}: {values[0][0]} against {values[1][0]}")
    before, after = _by_key(first, fields, "first"), _by_key(second, fields, "second")
    for name, ours, others in (("first", before, after), ("second", after, before)):
        alone = [" ".join(map(str, key)) for key in ours if key not in others]
        notes += [f"only in the {name} file: {', '.join(alone)}"] if alone else []
    found = [_compare(key, before[key], after[key]) for key in before if key in after]
    if not found:
        raise UserError("the two files have no test in common; " + "; ".join(notes))
    return found, notes


def _by_key(records: Sequence[Record], fields: Sequence[str], name: str) -> dict[tuple[Any, ...], Record]:
    found: dict[tuple[Any, ...], Record] = {}
    for record in records:
        key = tuple(record[field] for field in fields if record[field] is not None)
        if key in found:
            raise UserError(f"the {name} file holds {' '.join(map(str, key))} twice; compare one run with another")
        found[key] = record
    return found


def _compare(key: tuple[Any, ...], first: Record, second: Record) -> Comparison:
    before, after = ([record["tokens"] / seconds for seconds in record["seconds"]] for record in (first, second))
    middles = statistics.median(before), statistics.median(after)
    return Comparison(key, *middles, middles[1] / middles[0], min(after) / max(before), max(after) / min(before),
                      min(len(before), len(after)))


def to_markdown(comparisons: Sequence[Comparison], notes: Sequence[str]) -> str:
    """A table, and the notes."""
    lines = [line(("test", "first tok/s", "second tok/s", "second/first (range)", "verdict")), rule(5)]
    lines += [line((" ".join(map(str, c.key)), number(c.before), number(c.after),
                    f"{c.ratio:.3f} ({c.low:.3f}-{c.high:.3f})", c.verdict)) for c in comparisons]
    return "\n".join([*lines, *(["", *(f"* {text}" for text in notes)] if notes else [])])


def to_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [{"test": " ".join(map(str, c.key)), "before": c.before, "after": c.after, "ratio": c.ratio, "low": c.low,
             "high": c.high, "rounds": c.rounds, "verdict": c.verdict} for c in comparisons]
