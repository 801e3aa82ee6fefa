"""Records of a benchmark as Markdown, CSV, JSON or JSON lines, and read back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from blockffn_mlc.errors import UserError

from ..files import read_text
from ..jsonfile import positive
from .machine import busy_warning, cache_warning
from .measure import CALLS
from .records import Record
from .tables import line, number, rule

_DIGEST_LENGTH = 64
_BUILD = ("target", "host", "quantization", "activations", "artifact_digest", "built_by_tvm")
_MACHINE = ("device_name", "driver", "clock_mhz", "processor", "system", "tvm", "source")
_COLUMNS: dict[str, Callable[[Record], str]] = {
    "artifact": lambda r: r["artifact"],
    "size": lambda r: f"{r['weight_bytes'] / 1e6:.0f} MB",
    "device": lambda r: r["device"],
    "threads": lambda r: str(r["threads"]),
    "test": lambda r: r["test"],
    "mode": lambda r: r["mode"] if r["draft"] is None else f"{r['mode']} ({r['draft']})",
    "tok/s": lambda r: number(r["tokens_per_s"]) + ("" if r["tokens_per_s_sd"] is None else
                                                    f" ± {number(r['tokens_per_s_sd'])}"),
    "ms": lambda r: number(r["ms"]),
    "GB/s": lambda r: "" if r["gb_per_s"] is None else number(r["gb_per_s"]),
    "active": lambda r: f"{r['active']:.1%}",
    "union": lambda r: "" if r["union"] is None else f"{r['union']:.1%}",
    "accept": lambda r: "" if r["accept_length"] is None else f"{r['accept_length']:.2f}",
    "memory": lambda r: "" if r["peak_memory_bytes"] is None else f"{r['peak_memory_bytes'] / 1e6:.0f} MB",
    "load s": lambda r: f"{r['load_s']:.2f}",
    "first s": lambda r: f"{r['first_pass_s']:.2f}",
}


def warnings(records: Sequence[Record]) -> list[str]:
    """What makes the figures doubtful."""
    found = [busy_warning(record["busy_before"]) for record in records]
    found += [cache_warning(record["artifact"], record["weight_bytes"]) for record in records
              if record["device"] == "cpu"]
    return [text for text in dict.fromkeys(found) if text]


def to_markdown(records: Sequence[Record]) -> str:
    """A table for people, and what it was measured on."""
    lines = [line(_COLUMNS), rule(len(_COLUMNS)),
             *(line(column(record) for column in _COLUMNS.values()) for record in records), ""]
    for heading, key, fields in (("artifact", "artifact", _BUILD), ("device", "device", _MACHINE)):
        for name, record in {record[key]: record for record in records}.items():
            known = ", ".join(f"{field} {_short(record[field])}" for field in fields if record[field] is not None)
            lines.append(f"* {heading} {name}: {known}")
    text = ", ".join(dict.fromkeys(record["text"] for record in records))
    lines.append(f"* {records[0]['rounds']} round(s) of all rows in turn, on {text}; mean ± standard deviation")
    if records[0].get("timed") == CALLS:
        lines.append("* times are of the library's functions alone, by the device's own clock, added up")
    return "\n".join([*lines, *(f"* warning: {text}" for text in warnings(records))])


def to_csv(records: Sequence[Record]) -> str:
    """A line per record; lists are JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: json.dumps(value) if isinstance(value, list) else value for name, value in record.items()}
                     for record in records)
    return text.getvalue().rstrip("\n")


def to_json(records: Sequence[Record]) -> str:
    """A list of all records."""
    return json.dumps(list(records), indent=1, allow_nan=False)


def to_jsonl(records: Sequence[Record]) -> str:
    """An object per line."""
    return "\n".join(json.dumps(record, allow_nan=False) for record in records)


def _short(value: object) -> str:
    """Of a digest its beginning."""
    return value[:12] if isinstance(value, str) and len(value) == _DIGEST_LENGTH else str(value)


FORMATS = {"md": to_markdown, "csv": to_csv, "json": to_json, "jsonl": to_jsonl}


def read_records(path: str | Path) -> list[Record]:
    """What ``-o json`` or ``-o jsonl`` wrote. Raises UserError for anything else."""
    text = read_text(path)
    try:
        records = json.loads(text) if text.lstrip().startswith("[") else [json.loads(row) for row in text.splitlines()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); expected what bench wrote with -o json or -o jsonl"
                        ) from None
    needed = ("artifact", "device", "threads", "test", "tokens", "mode", "draft", "seconds")
    for place, record in enumerate(records, 1):
        missing = [name for name in needed if not isinstance(record, dict) or name not in record]
        if missing:
            raise UserError(f"{path}: record {place}: field {missing[0]!r} is missing; expected what bench wrote "
                            "with -o json or -o jsonl")
        positive(record, "tokens", f"{path}: record {place}")
        seconds = record["seconds"]
        if not isinstance(seconds, list) or not seconds or not all(
                isinstance(value, (int, float)) and value > 0 for value in seconds):
            raise UserError(f"{path}: record {place}: field 'seconds': expected a list of positive numbers, found "
                            f"{seconds!r:.80}")
    if not records:
        raise UserError(f"{path}: holds no record")
    return records
