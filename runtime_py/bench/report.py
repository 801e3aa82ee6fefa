"""The kernel benchmark's report as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from .machine import busy_warning, cache_warning
from .rounds import Report, Row
from .tables import line, number, rule

_RANGES = ("_min", "_max")
_TITLES = {
    "bandwidth": "Reading memory",
    "passes": "Whole passes (\"rest\": what the kernels by themselves do not explain)",
    "kernels": "Kernels, all calls of a pass together",
    "sparse and dense": "Kernels that compute experts: sparse/dense, divided by the share of active experts and by "
                        "the union's",
    "forced unions": "Kernels that compute experts, forced unions: time against the union of all experts, and "
                     "that divided by the union's share; every expert of a union is used by a fifth of the tokens",
}
_HEADINGS = {"gb_per_s": "GB/s", "gop_per_s": "GOP/s", "ms": "ms", "mb": "MB",
             "us_per_call": "us/call", "of_bandwidth": "of R", "sparse_dense": "sparse/dense",
             "over_active": "/active", "over_union": "/union", "kernels_ms": "kernels ms", "rest_ms": "rest ms"}
_SHARES = ("active", "union", "of_bandwidth")
_HIDDEN = ("origin",)


def warnings(facts: dict[str, Any]) -> list[str]:
    """What makes the figures doubtful."""
    found = busy_warning(facts["busy_before"]), cache_warning(facts["artifact"], facts["weight_bytes"])
    return [text for text in found if text]


def to_json(report: Report) -> str:
    """One object: facts, and a list of rows per table."""
    return json.dumps({**report.facts, "warnings": warnings(report.facts), **report.tables}, indent=1)


def to_csv(report: Report) -> str:
    """All rows in one table; the column ``table`` says which they belong to."""
    rows = [{"table": title, **row} for title, table in report.tables.items() for row in table]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def to_markdown(report: Report) -> str:
    """Tables for people: medians with their range."""
    facts = report.facts
    lines = [f"{facts['artifact']} ({facts['quantization']}, {facts['weight_bytes'] / 1e6:.0f} MB of weights, built "
             f"for {facts['host']}) on {facts['machine']} ({facts['device']}), {facts['processors']} processors. "
             f"Passes over {facts['text']} behind {facts['cached_tokens']} cached tokens. Medians of {facts['rounds']} "
             "rounds (range).",
             *(f"\nWarning: {text}." for text in warnings(facts))]
    for title, rows in report.tables.items():
        names = [name for name in dict.fromkeys(name for row in rows for name in row)
                 if not name.endswith(_RANGES) and name not in _HIDDEN]
        lines += ["", f"{_TITLES[title]}:", "", line(_HEADINGS.get(name, name) for name in names),
                  rule(len(names))]
        lines += [line(_cell(name, row) for name in names) for row in rows]
    return "\n".join(lines)


FORMATS = {"md": to_markdown, "csv": to_csv, "json": to_json}


def _cell(name: str, row: Row) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if name in _SHARES:
        return f"{value:.1%}"
    text = number(value)
    low, high = (row.get(name + suffix) for suffix in _RANGES)
    return text if low is None else f"{text} ({number(low)}-{number(high)})"
