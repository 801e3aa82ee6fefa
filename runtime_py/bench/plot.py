"""Pictures of a benchmark's records: latency, pass time against tokens and union, roofline."""

from __future__ import annotations

import base64
import html
import io
import statistics
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from ..files import replacing
from ..plot import load_pyplot
from .records import Record
from .render import to_markdown
from .tasks import CHUNK, GENERATE

FORMATS = (".png", ".html")


def plot_records(path: str | Path, records: Sequence[Record]) -> None:
    """Write a .png, or an .html with it and the table."""
    figure, axes = load_pyplot().subplots(2, 2, figsize=(13, 9), layout="constrained")
    draw_latency(axes[0, 0], records)
    draw_passes(axes[0, 1], records, "tokens", "tokens in a pass")
    draw_passes(axes[1, 0], records, "union", "share of the experts in a pass's union")
    _roofline(axes[1, 1], records)
    write_figure(path, figure, records)


def write_figure(path: str | Path, figure: Any, records: Sequence[Record]) -> None:
    """Write and close a figure of pyplot's as .png, or as an .html with the table of ``records``."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    load_pyplot().close(figure)
    with replacing(path) as temporary:
        if Path(path).suffix.lower() == ".png":
            temporary.write_bytes(image.getvalue())
        else:
            temporary.write_text(_PAGE.format(image=base64.b64encode(image.getvalue()).decode(),
                                              table=html.escape(to_markdown(records))), encoding="utf-8")


def series(record: Record) -> str:
    """What a line or bar of a picture belongs to."""
    draft = f" ({record['draft']})" if record["draft"] else ""
    return f"{record['artifact']}, {_device(record)}, {record['mode']}{draft}"


def _device(record: Record) -> str:
    threads = f", {record['threads']} thread{'s' * (record['threads'] > 1)}" if record["device"] == "cpu" else ""
    return f"{record['device']}{threads}"


def draw_latency(axes: Any, records: Sequence[Record]) -> None:
    rows = [record for record in records if record["kind"] == GENERATE]
    rows = rows or [record for record in records if record["kind"] == CHUNK and record["tokens"] == 1]
    axes.set_title("latency of decoding")
    axes.set(xlabel="ms per token")
    labels = [f"{series(record)}\n{record['test']}" for record in rows]
    axes.barh(labels, [1e3 / record["tokens_per_s"] for record in rows])
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()


def draw_passes(axes: Any, records: Sequence[Record], field: str, label: str) -> None:
    axes.set_title(f"time of a pass against its {'tokens' if field == 'tokens' else 'union'}")
    axes.set(xlabel=label, ylabel="ms")
    for name, rows in _by_series(records).items():
        rows = sorted((record for record in rows if record[field] is not None), key=lambda record: record[field])
        axes.plot([record[field] for record in rows], [record["ms"] for record in rows], marker="o", label=name)
    if field == "tokens":
        axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    _legend(axes)


def _roofline(axes: Any, records: Sequence[Record]) -> None:
    """Operations per second over operations per byte of weights, below what memory and arithmetic allow."""
    axes.set_title("roofline: work over bytes of weights")
    axes.set(xlabel="operations per byte", ylabel="GOP/s", xscale="log", yscale="log")
    found = [0.5, 64.0]
    for name, rows in _by_series(records).items():
        rows = [record for record in rows if record["gop_per_s"] and record["gb_per_s"]]
        intensity = [record["gop_per_s"] / record["gb_per_s"] for record in rows]
        axes.plot(intensity, [record["gop_per_s"] for record in rows], "o", label=name)
        found += intensity
    for name, (memory, arithmetic) in _roofs(records).items():
        ridge = arithmetic / memory  # 0 or infinite where only one of them is known
        known = [ridge] if 0 < ridge < inf else []
        places = sorted({min(found), *known, max(*found, *(2 * place for place in known))})
        figures = [f"{value:.{digits}f} {unit}" for value, digits, unit in ((memory, 1, "GB/s"),
                                                                            (arithmetic, 0, "GOP/s")) if value < inf]
        figures += [f"ridge at {place:.0f}" for place in known]
        axes.plot(places, [min(memory * place, arithmetic) for place in places], "--", linewidth=0.8,
                  label=f"roof of {name}: {', '.join(figures)}")
    _legend(axes)


def _roofs(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """GB/s and GOP/s, infinite where unknown, by what they belong to; of several readings the median."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(f"{_device(record)}, {record['activations'] or 'f32'}", []).append(record)

    def median(rows: list[Record], field: str) -> float:
        return statistics.median([record[field] for record in rows if record[field]] or [inf])

    roofs = {name: (median(rows, "roof_gb_per_s"), median(rows, "roof_gop_per_s")) for name, rows in found.items()}
    return {name: roof for name, roof in roofs.items() if min(roof) < inf}


def _by_series(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Chunks, by what they ran on and the cached tokens before them."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == CHUNK:
            found.setdefault(f"{series(record)}, d{record['depth']}", []).append(record)
    return found


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>blockffn-mlc benchmark</title>
<style>body {{ font: 13px system-ui, sans-serif; margin: 1.5em; }} img {{ max-width: 100%; }}</style></head><body>
<img alt="latency, time of passes, roofline" src="data:image/png;base64,{image}">
<pre>
{table}
</pre>
</body></html>
"""
