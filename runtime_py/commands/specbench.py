"""``specbench``: Spec-Bench's questions, answered in several modes."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockffn_mlc.errors import UserError

from ..artifact import CHAT_CONFIG, Artifact
from ..bench.machine import busy_share, busy_warning, processor
from ..drafters.ngram import NgramDrafter
from ..engine import Engine
from ..plot import check_plot
from ..specbench.questions import TASKS, choose, read_questions
from ..specbench.run import MODES, answer_questions
from .common import add_command, list_of, load_engine, note, positive_int

_FORMATS = ("md", "csv", "json")
_SAMPLE = 1024  # numbers of each weight that tell builds apart
_MAX_TOKENS = 1024  # as Spec-Bench and the paper


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers, "specbench", "answer Spec-Bench's questions in several modes and compare their speed", run,
        "Every mode answers a question, greedily, before the next one comes. Answers are kept in a folder, as "
        "Spec-Bench's JSONL; a run that was interrupted goes on where it stopped (docs/spec-bench.md).")
    parser.add_argument("--questions", required=True, metavar="FILE", help="Spec-Bench's question.jsonl")
    parser.add_argument("--tasks", type=list_of(_one_of(TASKS)), default=TASKS, metavar="LIST",
                        help=f"out of {','.join(TASKS)} (default: all)")
    parser.add_argument("--limit", type=positive_int, metavar="N",
                        help="questions of each task at most, evenly spread over it (default: all)")
    parser.add_argument("--modes", type=list_of(_one_of(MODES)), metavar="LIST",
                        help=f"out of {','.join(MODES)} (default: all that the artifact can do)")
    parser.add_argument("--max-tokens", type=positive_int, default=_MAX_TOKENS, metavar="N",
                        help=f"tokens of an answer at most (default: {_MAX_TOKENS})")
    parser.add_argument("--tree-size", type=positive_int, metavar="N",
                        help="nodes of every token tree; the paper's is 32 (default: chosen pass by pass)")
    parser.add_argument("--answers", metavar="DIR", help="folder of the answers (default: specbench-NAME, by the "
                        "artifact's name)")
    parser.add_argument("-o", "--output", choices=_FORMATS, default="md", help="format (default: md)")
    parser.add_argument("--plot", metavar="FILE", help="write a bar chart: .png (needs matplotlib)")


def run(args: argparse.Namespace) -> None:
    from ..specbench.answers import AnswerStore
    from ..specbench.plot import PLOT_FORMATS, plot_report
    from ..specbench.report import FORMATS, make_report

    if args.plot is not None:
        check_plot(args.plot, PLOT_FORMATS)
    questions = choose(read_questions(args.questions), args.tasks, args.limit)
    modes = _modes(Artifact.open(args.artifact), args.modes)
    if args.tree_size is not None and not any(MODES[mode].drafts for mode in modes):
        raise UserError(f"--tree-size {args.tree_size}: none of the modes {', '.join(modes)} drafts; leave it out, or "
                        "choose others with --modes")
    busy = busy_share()
    engine = load_engine(args)
    engine.controller(NgramDrafter(), args.tree_size or 1)  # refuses a size before anything is written
    settings = _settings(engine, args, modes)
    folder = f"specbench-{engine.artifact.name}" if args.answers is None else args.answers
    with AnswerStore(folder, settings, modes, note) as store, _progress(len(questions)) as progress:
        try:
            answer_questions(engine, questions, modes, store, args.max_tokens, args.tree_size, progress)
        except KeyboardInterrupt:
            note(f"\nthe answers so far are in {folder}; the same command goes on from there")
            raise
    report = make_report(questions, store.answers, store.skipped, settings | _facts(engine.artifact, busy))
    print(FORMATS[args.output](report))
    if args.plot is not None:
        plot_report(args.plot, report)
        note(f"wrote {args.plot}")


def _modes(artifact: Artifact, wanted: Collection[str] | None) -> list[str]:
    """The modes to run. Raises UserError for one that the artifact cannot do."""
    lacking = [] if artifact.draft else [name for name, mode in MODES.items() if mode.draft == "eagle"]
    if wanted is None:
        if lacking:
            note(f"note: {artifact.path} has no draft model, so {' and '.join(lacking)} are left out")
        return [name for name in MODES if name not in lacking]
    refused = [name for name in wanted if name in lacking]
    if refused:
        raise UserError(f"--modes: {', '.join(refused)} needs a draft model, which {artifact.path} has not; choose "
                        "other modes, or build the artifact with one (--draft)")
    return [name for name in MODES if name in wanted]


def _settings(engine: Engine, args: argparse.Namespace, modes: list[str]) -> dict[str, Any]:
    """What answers must have in common to be compared, as JSON values."""
    artifact = engine.artifact
    build = [artifact.library.read_bytes(), (artifact.path / CHAT_CONFIG).read_bytes()]
    build += [weight.reshape(-1)[:_SAMPLE].tobytes() for weight in artifact.weights.values()]
    return {"artifact": artifact.name, "build_digest": _digest(build), "machine": processor(),
            "device": f"{engine.device.name} {engine.device.product}", "threads": engine.threads,
            "mmap": args.mmap, "pin": args.pin,
            "questions_digest": _digest([Path(args.questions).read_bytes()]),
            "modes": modes, "max_tokens": args.max_tokens, "tree_size": args.tree_size}


def _facts(artifact: Artifact, busy: float | None) -> dict[str, Any]:
    """What else a report says of the run."""
    return {"quantization": artifact.chat_config.get("quantization"), "host": artifact.host,
            "processors": os.cpu_count(), "busy_before": busy,
            "warnings": [text for text in (busy_warning(busy),) if text]}


def _digest(parts: Iterable[bytes]) -> str:
    """The first 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    """argparse type: one of ``names``."""
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected names out of {','.join(names)}, found {text!r}")
        return text

    return parse


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar over questions on stderr; call the result with the number done and what comes next."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("questions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, what: bar.update(task, completed=done, description=what)
