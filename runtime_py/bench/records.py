"""Running the tasks of a benchmark, and its records: one flat object for each task of an artifact."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..artifact import Artifact
from . import measure
from .accounting import Sample
from .measure import Setup
from .rounds import process
from .tasks import Task, check_tasks

if TYPE_CHECKING:
    from ..rpc.client import Client

Record = dict[str, Any]


def run_tasks(setups: Sequence[Setup], tasks: Sequence[Task], repeat: int, progress: Callable[[str], None],
              client: Client | None = None) -> list[Record]:
    """Every round runs every task with every setup, in turn forwards and backwards; the first round warms up and does
    not count. ``client``: run on its server's machine instead of this one. Raises UserError for what cannot be
    measured, before anything is where that is known."""
    artifacts = {setup.artifact: Artifact.open(setup.artifact) for setup in setups}
    for artifact in artifacts.values():
        check_tasks(tasks, artifact)
    names = Counter(artifact.name for artifact in artifacts.values())
    sent = {path: client.send(artifact, progress) for path, artifact in artifacts.items()} if client else {}
    shared = {"rounds": repeat, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    samples: dict[tuple[Setup, Task], list[Sample]] = defaultdict(list)
    with ExitStack() as stack:
        workers, facts = {}, {}
        for setup in setups:
            workers[setup] = (client.process(setup, sent[setup.artifact]) if client else
                              stack.enter_context(process(setup)))
        shared |= workers[setups[0]](measure.surroundings)
        for setup in setups:
            progress(f"load {setup.artifact} for {setup.threads or 'all'} thread(s)")
            facts[setup] = shared | workers[setup](measure.prepare, tasks)
            if names[artifacts[setup.artifact].name] > 1:  # folders of one name in different places
                facts[setup]["artifact"] = setup.artifact
        steps = [(setup, task) for task in tasks for setup in setups]
        for turn in range(repeat + 1):
            progress(f"round {turn} of {repeat}" if turn else "warm up")
            for setup, task in steps if turn % 2 else reversed(steps):
                sample = workers[setup](measure.measure, task, turn)
                if turn:
                    samples[setup, task].append(sample)
        for setup in setups:
            facts[setup]["peak_memory_bytes"] = workers[setup](measure.peak)
    return [make_record(facts[setup], task, samples[setup, task]) for setup, task in steps]


def make_record(facts: Record, task: Task, samples: Sequence[Sample]) -> Record:
    """``facts``, and the figures of a task; docs/benchmark.md defines all fields."""
    rates = [task.tokens / sample.seconds for sample in samples]
    accepted = _mean(sample.accept_length for sample in samples)
    read = [sample for sample in samples if sample.weight_bytes is not None]
    counted = [sample for sample in samples if sample.operations is not None]
    return {**facts, "draft": facts["draft"] if accepted else None, "test": task.name,
            "kind": task.kind, "tokens": task.tokens, "depth": task.depth, "mode": task.mode,
            "tokens_per_s": statistics.mean(rates), "tokens_per_s_sd": deviation(rates),
            "ms": statistics.mean(sample.seconds / sample.passes for sample in samples) * 1e3,
            "gb_per_s": _mean(sample.weight_bytes / sample.seconds / 1e9 for sample in read),
            "gop_per_s": _mean(sample.operations / sample.seconds / 1e9 for sample in counted),
            "weight_bytes_per_pass": _mean(sample.weight_bytes / sample.passes for sample in read),
            "active": statistics.mean(sample.active for sample in samples),
            "union": _mean(sample.union for sample in samples), "accept_length": accepted,
            "seconds": [sample.seconds for sample in samples]}


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None
