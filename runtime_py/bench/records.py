"""Running the tasks of a benchmark, and its records: one flat object for each task of an artifact."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import ModuleType
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


Job = tuple[ModuleType, Any, Task]
"""A module with ``prepare``, ``measure`` and ``conclude`` as measure.py has them, a setup for them, a task."""


def run_tasks(setups: Sequence[Setup], tasks: Sequence[Task], repeat: int, progress: Callable[[str], None],
              client: Client | None = None) -> list[Record]:
    """``run_jobs`` of every task with every setup. ``client``: run on its server's machine instead of this one. Raises
    UserError for what cannot be measured, before anything is where that is known."""
    artifacts = {setup.artifact: Artifact.open(setup.artifact) for setup in setups}
    for artifact in artifacts.values():
        check_tasks(tasks, artifact)
    names = Counter(artifact.name for artifact in artifacts.values())
    sent = {path: client.send(artifact, progress) for path, artifact in artifacts.items()} if client else {}
    jobs = [(measure, setup, task) for task in tasks for setup in setups]
    records = run_jobs(jobs, repeat, progress,
                       (lambda setup: nullcontext(client.process(setup, sent[setup.artifact]))) if client else process)
    for record, (_, setup, _) in zip(records, jobs, strict=True):
        if names[artifacts[setup.artifact].name] > 1:  # folders of one name in different places
            record["artifact"] = setup.artifact
    return records


def run_jobs(jobs: Sequence[Job], repeat: int, progress: Callable[[str], None],
             start: Callable[[Any], AbstractContextManager[Callable[..., Any]]] = process,
             pause: float = 0.0) -> list[Record]:
    """Every round runs every job once, in turn forwards and backwards; the first round warms up and does not count.
    Each setup has a process of its own, which ``start`` gives (``rounds.process``), and all hold their weights at the
    same time. ``pause``: seconds before each measurement."""
    setups = {setup: module for module, setup, _ in jobs}
    shared = {"rounds": repeat, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    samples: dict[tuple[Any, Task], list[Sample]] = defaultdict(list)
    with ExitStack() as stack:
        workers, facts = {setup: stack.enter_context(start(setup)) for setup in setups}, {}
        shared |= workers[jobs[0][1]](measure.surroundings)
        for setup, module in setups.items():
            progress(f"load {setup}")
            facts[setup] = shared | workers[setup](module.prepare, [job[2] for job in jobs if job[1] == setup])
        for turn in range(repeat + 1):
            progress(f"round {turn} of {repeat}" if turn else "warm up")
            for module, setup, task in jobs if turn % 2 else reversed(jobs):
                time.sleep(pause)
                sample = workers[setup](module.measure, task, turn)
                if turn:
                    samples[setup, task].append(sample)
        for setup, module in setups.items():
            facts[setup] |= workers[setup](module.conclude)
    return [make_record(facts[setup], task, samples[setup, task]) for _, setup, task in jobs]


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
