"""Cells and rows of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable


def line(cells: Iterable[str]) -> str:
    """A row."""
    return "| " + " | ".join(cells) + " |"


def rule(columns: int) -> str:
    """The line below the headings."""
    return "|" + "---|" * columns


def number(value: float) -> str:
    """Three significant digits or more."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
