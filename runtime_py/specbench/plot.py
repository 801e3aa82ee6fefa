"""A bar chart of a report: decoding speed by task and mode."""

from __future__ import annotations

from pathlib import Path

from ..files import replacing
from ..plot import load_pyplot
from .report import HEADINGS, Report

PLOT_FORMATS = (".png",)


def plot_report(path: str | Path, report: Report) -> None:
    """Write a .png: tokens per second of decoding; figures above the bars are speed-ups against dense."""
    pyplot = load_pyplot()
    modes, tasks = report.modes, report.tasks
    figure, axes = pyplot.subplots(figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(modes)
    for index, mode in enumerate(modes):
        rows = [report.row(mode, task) for task in tasks]
        places = [place + (index - (len(modes) - 1) / 2) * width for place in range(len(tasks))]
        bars = axes.bar(places, [row["tokens_per_s"] or 0 for row in rows], width, label=mode)
        labels = ["" if row["speedup"] is None else f"{row['speedup']:.2f}x" for row in rows]
        axes.bar_label(bars, labels, fontsize=7, rotation=90, padding=2)
    axes.set_xticks(range(len(tasks)), [HEADINGS[task] for task in tasks])
    axes.set(ylabel="tokens per second of decoding")
    axes.margins(y=0.15)
    axes.set_title(f"Spec-Bench, {report.facts['artifact']}", parse_math=False)
    figure.legend(ncols=len(modes), fontsize=8, loc="outside lower center")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    pyplot.close(figure)
