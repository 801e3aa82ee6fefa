"""The kernel benchmark: rounds of passes in measuring processes, one per number of threads, and their figures."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from . import worker
from .machine import busy_share
from .rounds import Options, Report, Row, process, spread
from .worker import DENSE, SPARSE, Case, KernelSample, Sample, Setup

_READINGS = 3  # of memory, before every round
ALL_EXPERTS = "experts in all"  # the row that adds the kernels that compute experts

Samples = dict[tuple[int, Case], list[Sample]]  # by threads and case, one per round


def run_benchmark(options: Options, progress: Callable[[str], None]) -> Report:
    """Measure in rounds: every round reads the memory and runs every case with every number of threads, in turn
    forwards and backwards; the first round warms up. Raises UserError for an artifact that cannot be measured."""
    before = busy_share()
    cases = [Case(tokens, kind) for tokens in options.tokens for kind in (SPARSE, DENSE)]
    shares = sorted({*options.unions, 1.0}) if options.unions else []
    cases += [Case(tokens, SPARSE, share) for tokens in options.tokens for share in shares]
    bandwidth: dict[int, list[float]] = defaultdict(list)
    samples: Samples = defaultdict(list)
    with ExitStack() as stack:
        workers = {}
        for threads in options.threads:
            progress(f"load {options.artifact} for {threads} thread(s)")
            setup = Setup(options.artifact, threads, options.depth)
            workers[threads] = stack.enter_context(process(setup))
            facts = workers[threads](worker.prepare, max(options.tokens))
        for turn in range(options.repeat + 1):
            progress(f"round {turn} of {options.repeat}" if turn else "warm up")
            steps = [(threads, case) for case in cases for threads in options.threads]
            for threads, call in workers.items():
                readings = [call(worker.measure_bandwidth) for _ in range(_READINGS)]
                bandwidth[threads] += readings if turn else []
            for threads, case in steps if turn % 2 else reversed(steps):
                sample = workers[threads](worker.measure, case, turn)
                if turn:
                    samples[threads, case].append(sample)
    origins = facts.pop("origins")
    facts |= {"cached_tokens": options.depth, "rounds": options.repeat, "processors": os.cpu_count(),
              "busy_before": before}
    limits = {threads: statistics.median(readings) for threads, readings in bandwidth.items()}
    tables = {"bandwidth": [{"threads": threads, **spread("gb_per_s", readings)}
                            for threads, readings in bandwidth.items()],
              "passes": list(_passes(samples, limits)), "kernels": list(_kernels(samples, limits, origins)),
              "sparse and dense": list(_sparse_dense(samples)), "forced unions": list(_forced(samples))}
    return Report(facts, {title: rows for title, rows in tables.items() if rows})


def _passes(samples: Samples, limits: dict[int, float]) -> Iterator[Row]:
    """Whole passes, and what their kernels leave: the virtual machine, its memory, the call."""
    for (threads, case), passes in samples.items():
        if case.union is None:
            kernels = [sum(kernel.seconds for kernel in sample.kernels.values()) for sample in passes]
            rest = [sample.whole - time for sample, time in zip(passes, kernels)]
            nbytes = [sum(kernel.nbytes for kernel in sample.kernels.values()) for sample in passes]
            speed = statistics.median(size / sample.whole / 1e9 for size, sample in zip(nbytes, passes))
            yield {"threads": threads, "tokens": case.tokens, "pass": case.kind,
                   **spread("ms", [sample.whole for sample in passes], 1e3),
                   **spread("kernels_ms", kernels, 1e3), **spread("rest_ms", rest, 1e3),
                   "mb": statistics.median(nbytes) / 1e6, "gb_per_s": speed, "of_bandwidth": speed / limits[threads],
                   **_shares(passes)}


def _kernels(samples: Samples, limits: dict[int, float], origins: dict[str, str]) -> Iterator[Row]:
    """Every kernel of a pass, over all its calls, with the union that the router chose."""
    for (threads, case), passes in samples.items():
        if case == Case(case.tokens):
            for name in passes[0].kernels:
                kernels = [sample.kernels[name] for sample in passes]
                speed = statistics.median(kernel.nbytes / kernel.seconds / 1e9 for kernel in kernels)
                work = statistics.median(kernel.operations / kernel.seconds / 1e9 for kernel in kernels)
                yield {"threads": threads, "tokens": case.tokens, "kernel": name, "calls": kernels[0].calls,
                       **spread("ms", [kernel.seconds for kernel in kernels], 1e3),
                       "us_per_call": statistics.median(k.seconds / k.calls for k in kernels) * 1e6,
                       "mb": statistics.median(kernel.nbytes for kernel in kernels) / 1e6, "gb_per_s": speed,
                       "of_bandwidth": speed / limits[threads], "gop_per_s": work or None, "origin": origins[name]}


def _sparse_dense(samples: Samples) -> Iterator[Row]:
    """Kernels that compute experts: as the router chose against every expert for every token, in the same round."""
    for (threads, case), passes in samples.items():
        if case == Case(case.tokens):
            dense = samples[threads, Case(case.tokens, DENSE)]
            for name, seconds in _experts(passes).items():
                ratios = [mine / other for mine, other in zip(seconds, _experts(dense)[name])]
                shares = _shares(passes)
                yield {"threads": threads, "tokens": case.tokens, "kernel": name, **shares,
                       **spread("sparse_dense", ratios),
                       **{f"over_{what}": statistics.median(
                           ratio / getattr(sample, what) for ratio, sample in zip(ratios, passes))
                          for what, share in shares.items() if share}}


def _forced(samples: Samples) -> Iterator[Row]:
    """The same kernels at forced unions, against the union of all experts in the same round."""
    for (threads, case), passes in samples.items():
        if case.union is not None:
            full = _experts(samples[threads, Case(case.tokens, SPARSE, 1.0)])
            for name, seconds in _experts(passes).items():
                ratios = [mine / other for mine, other in zip(seconds, full[name])]
                yield {"threads": threads, "tokens": case.tokens, "kernel": name, **_shares(passes),
                       **spread("ms", seconds, 1e3), **spread("ratio", ratios),
                       "over_union": statistics.median(ratios) / passes[0].union if passes[0].union else None}


def _experts(passes: list[Sample]) -> dict[str, list[float]]:
    """Seconds per round of every kernel that computes experts, and of all of them."""
    def seconds(wanted: Callable[[str, KernelSample], bool]) -> list[float]:
        return [sum(k.seconds for name, k in sample.kernels.items() if wanted(name, k)) for sample in passes]

    names = [name for name, kernel in passes[0].kernels.items() if kernel.experts]
    return {**{name: seconds(lambda other, _, name=name: other == name) for name in names},
            ALL_EXPERTS: seconds(lambda _, kernel: kernel.experts)}


def _shares(passes: list[Sample]) -> Row:
    """Mean shares of the experts that a token uses, and that a pass uses."""
    return {"active": statistics.mean(sample.active for sample in passes),
            "union": statistics.mean(sample.union for sample in passes)}
