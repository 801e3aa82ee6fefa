#!/usr/bin/env python3
"""Our artifacts against other engines on models of the same size, all in turn in one run.

    python benchmarks/peers.py dist/xlarge-random-q4f16_1-cpu --model xlarge@random \\
        --peers llama:Q4_0,minicpm3:Q4_0,moe:Q4_0 --threads 2 -p 128,512 -n 64 --chunks 1,8,32 -r 5 --plot peers.png

Peers: KIND:FORMAT for llama.cpp, with KIND one of llama, minicpm3, moe (docs/peers.md) and FORMAT one of Q4_0, Q8_0,
F16; onnx:q0f32 and onnx:q0f16, the model as ONNX under ONNX Runtime; torch, the PyTorch reference. Their models are
written once, into --models. docs/peers.md says what is compared and what differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import engines  # noqa: E402
from summary import to_table  # noqa: E402

from blockffn_mlc.errors import UserError  # noqa: E402
from blockffn_mlc.sources import ModelSource, open_model  # noqa: E402
from runtime_py.artifact import Artifact  # noqa: E402
from runtime_py.bench import measure  # noqa: E402
from runtime_py.bench.plot import FORMATS as PLOT_FORMATS  # noqa: E402
from runtime_py.bench.plot import draw_latency, draw_passes, write_figure  # noqa: E402
from runtime_py.bench.records import Job, Record, run_jobs  # noqa: E402
from runtime_py.bench.render import FORMATS, warnings  # noqa: E402
from runtime_py.bench.tasks import DENSE, GENERATE, SPARSE, check_tasks, make_tasks  # noqa: E402
from runtime_py.commands.common import list_of, note, positive_int  # noqa: E402
from runtime_py.files import cache_folder  # noqa: E402
from runtime_py.plot import check_plot, load_pyplot  # noqa: E402

_OUTPUTS = {"table": to_table} | FORMATS
_SETTLE = 0.1  # seconds: after a pass some engines' threads go on spinning for a while
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # for engines that do not ask for them, as ours does


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", metavar="ARTIFACT", help="folders that build.py wrote of --model")
    parser.add_argument("--model", default="xlarge@random", metavar="M",
                        help="as for build.py: gives the sizes, and ONNX's and PyTorch's weights (default: "
                             "xlarge@random)")
    parser.add_argument("--peers", type=list_of(str), default=("llama:Q4_0", "minicpm3:Q4_0", "moe:Q4_0"),
                        metavar="LIST", help="default: llama:Q4_0,minicpm3:Q4_0,moe:Q4_0")
    parser.add_argument("--models", type=Path, metavar="DIR",
                        help="where the peers' models are kept (default: the cache folder)")
    parser.add_argument("--threads", type=positive_int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--depth", type=list_of(int), default=(64,), metavar="LIST",
                        help="tokens cached before (default: 64)")
    parser.add_argument("-p", dest="prompts", type=list_of(int), default=(128,), metavar="LIST",
                        help="tokens of a prompt (default: 128)")
    parser.add_argument("-n", dest="generated", type=list_of(int), default=(32,), metavar="LIST",
                        help="tokens to decode (default: 32)")
    parser.add_argument("--chunks", type=list_of(int), default=(1, 8, 32), metavar="LIST",
                        help="tokens of single passes with all logits (default: 1,8,32)")
    parser.add_argument("--modes", type=list_of(str), default=(SPARSE,), metavar="LIST",
                        help="of our artifacts: dense, sparse (default: sparse)")
    parser.add_argument("-r", "--repeat", type=positive_int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("-o", "--output", choices=_OUTPUTS, default="md",
                        help="table: a row for each engine; else a row or object for each test of each (default: md)")
    parser.add_argument("--plot", metavar="FILE", help="also write a picture, .png, or .html with the table")
    args = parser.parse_args(argv)
    try:
        run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """Prepare the peers' models, time everything in turn, print the records. Raises UserError."""
    if args.plot is not None:
        check_plot(args.plot, PLOT_FORMATS)
        load_pyplot()
    unknown = set(args.modes) - {DENSE, SPARSE}
    if unknown:
        raise UserError(f"--modes {','.join(unknown)}: expected dense, sparse")
    model = open_model(args.model)
    ours = make_tasks(args.prompts, args.generated, args.chunks, args.depth, args.modes)
    jobs: list[Job] = []
    for folder in args.artifacts:
        artifact = Artifact.open(folder)
        if artifact.config != model.config:
            raise UserError(f"{folder}: is not of the size of --model {args.model}; build both from the same model")
        check_tasks(ours, artifact)
        jobs += [(measure, measure.Setup(folder, args.threads), task) for task in ours]
    models = args.models or cache_folder() / "peers"
    for peer in args.peers:
        mode = SPARSE if peer.startswith("moe:") else DENSE
        theirs = make_tasks(args.prompts, args.generated, args.chunks, args.depth, (mode,))
        setup = prepare_peer(peer, model, args.model, models, args.threads)
        # Without a cache decoding is a chunk of one token, again and again.
        jobs += [(engines, setup, task) for task in theirs if task.kind != GENERATE or peer != engines.TORCH]
    tests = list(dict.fromkeys(task.name for *_, task in jobs))
    jobs.sort(key=lambda job: tests.index(job[2].name))
    os.environ |= {name: value for name, value in _HUGE_PAGES.items() if name not in os.environ}
    records = run_jobs(jobs, args.repeat, note, pause=_SETTLE)
    for text in warnings(records):
        note(f"warning: {text}")
    print(_OUTPUTS[args.output](records))
    if args.plot is not None:
        plot(args.plot, records)
        note(f"wrote {args.plot}")


def prepare_peer(peer: str, model: ModelSource, spec: str, models: Path, threads: int) -> engines.Setup:
    """Write the model that ``peer`` takes, unless it is there. Raises UserError."""
    engines.check_installed(peer)
    folder = models / model.name
    folder.mkdir(parents=True, exist_ok=True)
    note(f"model for {peer}")
    return engines.Setup(peer, engines.write_model(peer, model, spec, folder), threads)


def plot(path: str | Path, records: Sequence[Record]) -> None:
    """A picture of decoding and of passes, as .png, or as .html with the table."""
    figure, axes = load_pyplot().subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    draw_latency(axes[0], records)
    draw_passes(axes[1], records, "tokens", "tokens in a pass")
    write_figure(path, figure, records)


if __name__ == "__main__":
    sys.exit(main())
