"""The benchmark of whole passes, decoding and chunks, on the processor or a device."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack

from . import passes
from .machine import busy_share
from .passes import DENSE, SPARSE, Case, Pass, Setup
from .rounds import Options, Report, Row, process, spread


def run_passes(options: Options, progress: Callable[[str], None]) -> Report:
    """Measure in rounds: every round runs every case with every number of threads, in turn forwards and backwards; the
    first round, in which a device's driver compiles kernels, does not count. Raises UserError for an artifact or a
    device that cannot be measured."""
    before = busy_share()
    cases = [Case(tokens, kind) for tokens in options.tokens for kind in (SPARSE, DENSE)]
    samples: dict[tuple[int, Case], list[Pass]] = defaultdict(list)
    with ExitStack() as stack:
        workers = {}
        for threads in options.threads:
            progress(f"load {options.artifact} for {threads} thread(s)")
            setup = Setup(options.artifact, threads, options.depth, options.device)
            workers[threads] = stack.enter_context(process(setup))
            facts = workers[threads](passes.prepare, max(options.tokens))
        for turn in range(options.repeat + 1):
            progress(f"round {turn} of {options.repeat}" if turn else "warm up")
            steps = [(threads, case) for case in cases for threads in options.threads]
            for threads, case in steps if turn % 2 else reversed(steps):
                sample = workers[threads](passes.measure, case, turn)
                if turn:
                    samples[threads, case].append(sample)
    facts |= {"cached_tokens": options.depth, "rounds": options.repeat, "processors": os.cpu_count(),
              "busy_before": before}
    return Report(facts, {"whole passes": [_row(threads, case, found) for (threads, case), found in samples.items()]})


def _row(threads: int, case: Case, found: list[Pass]) -> Row:
    return {"threads": threads, "tokens": case.tokens, "pass": case.kind,
            **spread("ms", [sample.seconds for sample in found], 1e3),
            **spread("tokens_per_s", [case.tokens / sample.seconds for sample in found]),
            "mb": statistics.median(sample.nbytes for sample in found) / 1e6,
            "gb_per_s": statistics.median(sample.nbytes / sample.seconds / 1e9 for sample in found),
            "active": statistics.mean(sample.active for sample in found),
            "union": statistics.mean(sample.union for sample in found)}
