"""``bench``: how fast passes, or the kernels, of an artifact run on this machine."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from blockffn_mlc.errors import UserError

from ..devices import KINDS
from ..tvm_runtime import physical_cores
from .common import list_of, note, positive_int

_FORMATS = ("md", "csv", "json")


def add_parser(subparsers: Any) -> None:
    summary = "time passes, or every kernel, of an artifact"
    parser = subparsers.add_parser(
        "bench", help=summary, description=f"{summary.capitalize()} on real data (docs/benchmark.md): one token is "
        "plain decoding, more a chunk. With --kernels passes are repeated kernel by kernel, layer after layer, so that "
        "weights come from memory. What is compared takes turns within a round; figures are medians over rounds, with "
        "their range.")
    parser.add_argument("artifact", help="folder written by build.py")
    parser.add_argument("--kernels", action="store_true", help="time the kernels, on the processor")
    parser.add_argument("--device", metavar="D", help=f"where to time whole passes: cpu, {', '.join(KINDS)} or "
                        "KIND:N (default: what the artifact was built for)")
    parser.add_argument("--threads", type=list_of(positive_int), metavar="LIST",
                        help="CPU threads, for example 1,2 (default: one per physical core)")
    parser.add_argument("--tokens", type=list_of(positive_int), default=(1, 4, 8, 32), metavar="LIST",
                        help="tokens per pass (default: 1,4,8,32)")
    parser.add_argument("--union", type=list_of(_share), default=(), metavar="LIST", help="time the kernels that "
                        "compute experts also with these shares of all experts in use, for example 0,0.1,0.5,1")
    parser.add_argument("--depth", type=positive_int, default=64, metavar="N",
                        help="tokens cached before (default: 64)")
    parser.add_argument("-r", "--repeat", type=positive_int, default=7, metavar="N", help="rounds (default: 7)")
    parser.add_argument("-o", "--output", choices=_FORMATS, default="md", help="format (default: md)")
    parser.set_defaults(run=partial(run, parser))


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.union and not args.kernels:
        parser.error("--union: expected --kernels beside it; whole passes use the experts that the router chooses")
    if args.kernels and args.device not in (None, "cpu"):
        raise UserError(f"--device {args.device}: kernels are timed on the processor alone; leave --kernels out to "
                        "time whole passes there")
    from ..bench.kernels import run_benchmark
    from ..bench.report import FORMATS, warnings
    from ..bench.rounds import Options
    from ..bench.whole import run_passes

    options = Options(args.artifact, args.threads or (physical_cores(),), args.tokens, args.union, args.depth,
                      args.repeat, args.device)
    report = (run_benchmark if args.kernels else run_passes)(options, note)
    for text in warnings(report.facts):
        note(f"warning: {text}")
    print(FORMATS[args.output](report))


def _share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, found {text}")
    return value
