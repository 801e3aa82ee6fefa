"""``bench``: how fast an artifact reads, decodes and verifies, or its kernels run; and comparisons of two runs."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from blockffn_mlc.errors import UserError

from ..devices import KINDS
from ..tvm_runtime import physical_cores
from .common import add_rpc, connect_rpc, list_of, note, number, positive_int

_COMPARE = "compare"
_DRAFTS = ("auto", "eagle", "ngram", "scripted")
_FORMATS = ("md", "csv", "json", "jsonl")
_WHOLE = {"prompts": (128,), "generated": (128,), "chunks": (1, 2, 4, 8, 16, 32), "modes": ("dense", "sparse")}
_DRAFTING = ("draft", "accept_length", "tree_size")
_OPTIONAL = ("text", *_DRAFTING, "plot", "rpc", "rpc_folder")
_KERNELS = {"tokens": (1, 4, 8, 32), "union": ()}
_count = number(int, "an integer from 0 up", lambda value: value >= 0)
_share = number(float, "a share from 0 to 1", lambda value: 0 <= value <= 1)


def add_parser(subparsers: Any) -> None:
    summary = "time artifacts, or every kernel of one, or compare two runs"
    parser = subparsers.add_parser(
        "bench", help=summary, usage="python -m runtime_py bench ARTIFACT [ARTIFACT ...] [options]\n"
        "       python -m runtime_py bench ARTIFACT --kernels [options]\n"
        "       python -m runtime_py bench compare A.json B.json [-o md|json]",
        description=f"{summary.capitalize()} (docs/benchmark.md defines every figure). What is compared takes turns in "
        "every round. 'compare' ends with exit code 1 where every round of B was slower than every round of A.")
    parser.add_argument("artifacts", nargs="+", metavar="ARTIFACT", help="folders written by build.py")
    parser.add_argument("--device", metavar="D", help=f"cpu, {', '.join(KINDS)} or KIND:N (default: what "
                        "the artifact was built for)")
    add_rpc(parser)
    parser.add_argument("--threads", type=list_of(positive_int), metavar="LIST",
                        help="CPU threads, for example 1,2 (default: one per physical core)")
    parser.add_argument("--depth", type=list_of(_count), default=(64,), metavar="LIST",
                        help="tokens cached before (default: 64)")
    parser.add_argument("-r", "--repeat", type=positive_int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("-o", "--output", choices=_FORMATS, default="md", help="format (default: md)")
    whole = parser.add_argument_group("what to time (0 leaves a kind out)")
    whole.add_argument("-p", dest="prompts", type=list_of(_count), metavar="LIST",
                       help="tokens of a prompt (default: 128)")
    whole.add_argument("-n", dest="generated", type=list_of(_count), metavar="LIST",
                       help="tokens to decode (default: 128)")
    whole.add_argument("--chunks", type=list_of(_count), metavar="LIST",
                       help="tokens of single passes with all logits (default: 1,2,4,8,16,32)")
    whole.add_argument("--modes", type=list_of(_mode), metavar="LIST", help="dense (every expert), sparse, speculative "
                       "(decoding with drafts) (default: dense,sparse)")
    whole.add_argument("--text", metavar="FILE", help="text to feed (default: the artifact's token stream, else random "
                       "tokens and what the model finds most likely behind them)")
    whole.add_argument("--draft", choices=_DRAFTS, help="of speculative decoding: the artifact's draft model, lookup, "
                       "a script with errors (default: the first that the artifact can use)")
    whole.add_argument("--accept-length", type=float, metavar="L", help="of scripted drafts: new tokens per pass "
                       "(default: 2.66, the paper's mean)")
    whole.add_argument("--tree-size", type=positive_int, metavar="N", help="nodes of draft trees (default: as it pays)")
    whole.add_argument("--plot", metavar="FILE", help="also write a picture, .png, or .html with the table")
    kernels = parser.add_argument_group("kernels, on the processor")
    kernels.add_argument("--kernels", action="store_true", help="time every kernel, layer after layer, so that weights "
                         "come from memory")
    kernels.add_argument("--tokens", type=list_of(positive_int), metavar="LIST",
                         help="tokens per pass (default: 1,4,8,32)")
    kernels.add_argument("--union", type=list_of(_share), metavar="LIST", help="time the kernels that compute experts "
                         "also with these shares of all experts in use, for example 0,0.1,0.5,1")
    parser.set_defaults(run=partial(run, parser))


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.artifacts[0] == _COMPARE:
        _compare(parser, args)
        return
    for name in (*_WHOLE, *_OPTIONAL) if args.kernels else _KERNELS:
        if getattr(args, name) is not None:
            option = {"prompts": "-p", "generated": "-n"}.get(name, f"--{name.replace('_', '-')}")
            parser.error(f"{option}: expected {'no --kernels' if args.kernels else '--kernels'} beside it")
    for name, default in (_KERNELS if args.kernels else _WHOLE).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    (_kernels if args.kernels else _whole)(parser, args)


def _whole(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from ..bench.measure import Setup
    from ..bench.plot import FORMATS as PLOT_FORMATS
    from ..bench.plot import plot_records
    from ..bench.records import run_tasks
    from ..bench.render import FORMATS, warnings
    from ..bench.tasks import SPECULATIVE, make_tasks
    from ..plot import check_plot, load_pyplot

    tasks = make_tasks(args.prompts, args.generated, args.chunks, args.depth, args.modes)
    given = {name: getattr(args, name) for name in _DRAFTING if getattr(args, name) is not None}
    speculates = any(task.mode == SPECULATIVE for task in tasks)
    if not tasks or speculates != (SPECULATIVE in args.modes):
        parser.error(f"-p, -n, --chunks: leave nothing for --modes {','.join(args.modes)} to time; {SPECULATIVE} times "
                     "-n alone")
    if given and not speculates:
        parser.error(f"--{next(iter(given)).replace('_', '-')}: expected {SPECULATIVE} among --modes")
    if "accept_length" in given and args.draft in ("eagle", "ngram"):
        parser.error(f"--accept-length: expected --draft scripted, found {args.draft}; others accept what they accept")
    if args.plot is not None:
        check_plot(args.plot, PLOT_FORMATS)
        load_pyplot()
    setups = [Setup(artifact, count, args.device, args.text, **given)
              for artifact in dict.fromkeys(str(Path(name)) for name in args.artifacts)
              for count in args.threads or (None,)]
    if args.rpc is not None and args.text is not None:
        parser.error("--text: expected no --rpc beside it; a server has the artifact's files alone")
    if args.rpc_folder is not None and args.rpc is None:
        parser.error("--rpc-folder: expected --rpc beside it")
    with nullcontext() if args.rpc is None else connect_rpc(args) as client:
        records = run_tasks(setups, tasks, args.repeat, note, client)
    for text in warnings(records):
        note(f"warning: {text}")
    print(FORMATS[args.output](records))
    if args.plot is not None:
        plot_records(args.plot, records)
        note(f"wrote {args.plot}")


def _kernels(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from ..bench.kernels import run_benchmark
    from ..bench.report import FORMATS, warnings
    from ..bench.rounds import Options

    if len(args.artifacts) > 1 or len(args.depth) > 1 or args.depth[0] < 1:
        parser.error("--kernels: expected one artifact and one --depth from 1 up")
    if args.output not in FORMATS:
        parser.error(f"-o {args.output}: with --kernels expected {', '.join(FORMATS)}")
    if args.device not in (None, "cpu"):
        raise UserError(f"--device {args.device}: kernels are timed on the processor alone; leave --kernels out to "
                        "time whole passes there")
    options = Options(args.artifacts[0], args.threads or (physical_cores(),), args.tokens, args.union, args.depth[0],
                      args.repeat)
    report = run_benchmark(options, note)
    for text in warnings(report.facts):
        note(f"warning: {text}")
    print(FORMATS[args.output](report))


def _compare(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from ..bench.compare import SLOWER, compare, to_markdown, to_rows
    from ..bench.render import read_records

    if len(args.artifacts) != 3 or args.output not in ("md", "json"):
        parser.error("compare: expected two files that bench wrote with -o json or -o jsonl, and -o md or -o json")
    comparisons, notes = compare(*map(read_records, args.artifacts[1:]))
    print(to_markdown(comparisons, notes) if args.output == "md"
          else json.dumps({"notes": notes, "comparisons": to_rows(comparisons)}, indent=1))
    slower = [" ".join(map(str, found.key)) for found in comparisons if found.verdict == SLOWER]
    if slower:
        raise UserError(f"{len(slower)} of {len(comparisons)} tests became slower beyond their spread: "
                        f"{', '.join(slower)}")


def _mode(text: str) -> str:
    """argparse type: a mode."""
    from ..bench.tasks import MODES

    if text not in MODES:
        raise argparse.ArgumentTypeError(f"expected modes out of {','.join(MODES)}, found {text!r}")
    return text
