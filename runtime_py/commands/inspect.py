"""``inspect``: which experts a text activates."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import numpy as np

from ..plot import check_plot, plot_activity
from ..sparsity import WINDOWS, Sparsity, active_experts
from .common import add_command, add_input, add_split, input_windows, load_engine, note, number, print_json

_SHOWN_TOKENS, _PLOTTED_TOKENS = 40, 1024
_threshold = number(float, "a finite number from 0 up", lambda value: 0 <= value < math.inf)


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers, "inspect", "how many experts a text activates, per token and layer", run,
        "TLS is the share of inactive experts per token, CLS_L the share inactive in all of L consecutive tokens "
        "(disjoint windows).")
    add_input(parser, "--prompt", "--text-file", "--ids")
    add_split(parser)
    parser.add_argument("--threshold", type=_threshold, default=0.0, metavar="X",
                        help="count experts with |router score| > X (default: 0, every expert that is computed)")
    parser.add_argument("--plot", metavar="FILE", help="write a heat map: .png (needs matplotlib) or .html")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> None:
    if args.plot is not None:
        check_plot(args.plot)
    engine = load_engine(args)
    windows = input_windows(args, engine)
    active = np.concatenate([active_experts(output.router_scores, args.threshold)
                             for ids in windows for output in engine.session().stream(ids)], axis=1)
    ids = [token for window in windows for token in window]
    tokens = [engine.tokenizer.label(i) if engine.has_tokenizer else str(i) for i in ids]
    piece = len(windows[0])
    total, layers = Sparsity.measure(active, piece), [Sparsity.measure(layer, piece) for layer in active]
    if args.json:
        print_json({"artifact": engine.artifact.name, "experts": active.shape[-1], "threshold": args.threshold,
                    "ids": ids, "tokens": tokens, "active": active.sum(axis=-1).tolist(), **total.to_dict(),
                    "layers": [layer.to_dict() for layer in layers]})
    else:
        _print_tables(active, tokens, total, layers)
    if args.plot is not None:
        part = f" (first {_PLOTTED_TOKENS} tokens shown)" if len(tokens) > _PLOTTED_TOKENS else ""
        plot_activity(args.plot, active[:, :_PLOTTED_TOKENS], tokens[:_PLOTTED_TOKENS],
                      f"{engine.artifact.name}: active experts, TLS {total.tls:.1%}{part}")
        note(f"wrote {args.plot}{part}")


def _print_tables(active: np.ndarray, tokens: list[str], total: Sparsity, layers: list[Sparsity]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 10_000)  # a file is as wide as its tables
    console.print(f"Active experts of {active.shape[-1]}, over {len(tokens)} tokens")
    table = Table()
    for heading in ("layer", "mean", "min", "max", "TLS", *(f"CLS_{window}" for window in WINDOWS)):
        table.add_column(heading, justify="right")
    for name, row in [*((str(i), layer) for i, layer in enumerate(layers)), ("all", total)]:
        if name == "all":
            table.add_section()
        table.add_row(name, f"{row.mean_active:.1f}", str(row.min_active), str(row.max_active),
                      *("n/a" if share is None else f"{share:.1%}" for share in (row.tls, *row.cls.values())))
    console.print(table)

    shown = tokens[:_SHOWN_TOKENS]
    if max(map(len, shown)) + 4 * len(layers) + 3 > console.width:
        note("the terminal is too narrow for a column per layer: see --json or --plot for single tokens")
        return
    console.print("Active experts per token and layer")
    table = Table(padding=(0, 0))
    table.add_column("token", no_wrap=True)
    for layer in range(len(layers)):
        table.add_column(str(layer), justify="right", min_width=3)
    counts = active.sum(axis=-1).T
    for token, row in zip(shown, counts.tolist()):
        table.add_row(Text(token), *(Text(str(n), _shade(n / active.shape[-1])) for n in row))
    console.print(table)
    if len(tokens) > len(shown):
        note(f"{len(tokens) - len(shown)} more tokens: see --json or --plot")


def _shade(share: float) -> str:
    """A terminal colour from dark to bright blue for the share of active experts."""
    return f"white on rgb({int(20 + 40 * share)},{int(40 + 90 * share)},{int(60 + 195 * min(1, 2 * share))})"
