"""Measuring an engine's cost table, once per artifact, drafter and machine: the result is kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import statistics
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blockffn_mlc.errors import UserError

from .artifact import Artifact
from .bench.machine import processor
from .controller import TOP_K, Controller
from .cost_table import NODES, CostTable
from .drafters import Drafter
from .files import cache_folder, replacing
from .sampling import GREEDY, Sampler
from .session import Session
from .stats import Stopwatch
from .tree import Tree, TreeShape
from .tvm_runtime import installed_version

if TYPE_CHECKING:
    from .engine import Engine

_RECIPE = 5  # of the measurement; entries of another are stale
_CACHED_TOKENS = 64  # attention is a small part of a pass, so its depth matters little
_REPEATED = 4  # times the same of them
_ROUNDS = 3, 25  # at least, at most
_SECONDS = 1.0  # no further round begins after it
_STEADY = 3.0  # times the shortest: a median beyond it says that something else was running
_DEPTHS = 8
_DRAFT_NODES = 16  # of the trees drafted: a typical 4 to verify, and GROW times as many to learn from
_EVEN = CostTable(NODES, (1.0,) * len(NODES))  # for controllers that are only timed


def cost_table(engine: Engine, drafter: Drafter, progress: Callable[[str], None] = lambda line: None, *,
               dense: bool = False) -> CostTable:
    """The table from the cache folder, or else measured and kept there. Forgets what ``drafter`` knows.

    A cache that is damaged, stale or not writable costs a measurement, nothing else."""
    key = cache_key(engine, drafter.name, dense)
    try:
        path = cache_folder() / "costs" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    except RuntimeError:  # a user without a home
        path = Path(os.devnull)
    table = _read(path, key)
    if table is None:
        progress(f"measuring what passes over 1 to {NODES[-1]} tokens cost (kept in {path.parent}) ...")
        table, undisturbed = measure_costs(engine, drafter, dense)
        if undisturbed:
            _write(path, key, table)
        else:
            progress("other programs disturbed the measurement: it is not kept, the next process measures again")
    return table


def cache_key(engine: Engine, drafter: str, dense: bool = False) -> dict[str, Any]:
    """What a table holds for: another library, other weights, another machine, device, number of threads, TVM or
    drafter, and passes that compute every expert (``dense``), need another one."""
    artifact, device = engine.artifact, engine.device
    place = "" if device.here else " of another machine"
    return {"recipe": _RECIPE, "artifact": artifact.digest, "processor": processor(),
            "device": f"{device.name} {device.product}{place}", "threads": engine.threads, "tvm": installed_version(),
            "drafter": drafter, "dense": dense}


def measure_costs(engine: Engine, drafter: Drafter, dense: bool = False) -> tuple[CostTable, bool]:
    """Medians of rounds over all numbers of nodes and levels, in turn forwards and backwards, so that a slow moment
    meets different ones; the first round warms up. Rounds go on for ``_SECONDS``, which bounds the time on small
    models; on large ones there are ``_ROUNDS[0]``, the fewest whose median outvotes a disturbance. Also returns
    whether the medians are to be trusted. Forgets what ``drafter`` knows."""
    session = engine.session(drafter, dense=dense)
    tree, choose, work = _nodes(session, engine.artifact), Sampler(GREEDY, session.accept_kernel), {}
    for count in NODES:
        if count <= len(tree) and count.bit_length() <= session.room:
            work[count] = partial(_step, session, choose, Controller(_EVEN), tree[:count])
    depths = range(1, _DEPTHS + 1 if drafter.by_level else 1)
    work["try"] = partial(_try, session, choose, Controller(_EVEN), tree[0])
    for depth in depths:
        work["draft", depth] = partial(drafter.draft, tree[0], TreeShape(_DRAFT_NODES, depth, TOP_K))
    times: dict[Any, list[float]] = {name: [] for name in work}
    clock = Stopwatch()
    for turn in range(_ROUNDS[1] + 1):
        for name in work if turn % 2 else reversed(work):
            with engine.device.timed() as lap:
                work[name]()
            if turn:
                times[name].append(lap.seconds)
        if turn >= _ROUNDS[0] and clock.seconds > _SECONDS:
            break
    session.rollback(0)
    seconds = {name: statistics.median(laps) for name, laps in times.items()}
    undisturbed = all(seconds[name] <= _STEADY * min(laps) for name, laps in times.items())
    nodes = tuple(count for count in NODES if count in seconds)
    table = CostTable(nodes, _rising(seconds[count] for count in nodes),
                      _rising(seconds["draft", depth] for depth in depths), max(seconds["try"] - seconds[1], 0.0))
    return table, undisturbed


def _rising(seconds: Iterable[float]) -> tuple[float, ...]:
    """More work is never faster, and a disturbance only ever adds: where a time exceeds a later one, that counts."""
    return tuple(accumulate(reversed(list(seconds)), min))[::-1]


def _nodes(session: Session, artifact: Artifact) -> list[int]:
    """Put some tokens into the session; return others for a tree behind them, as many as one may have: those that a
    synthetic model was made for, or else the most likely ones behind random ones, as in a drafted tree; these repeat
    themselves, so that lookup has something to find."""
    limit = min(artifact.max_tree_nodes, artifact.prefill_chunk_size)
    count = max(1, min(_CACHED_TOKENS, artifact.context_window_size // 2))
    stream = artifact.token_stream
    if stream is not None and len(stream) >= count + limit:
        session.extend(stream[:count].tolist())
        return stream[count:count + limit].tolist()
    pattern = random.Random(0).choices(range(artifact.config.vocab_size), k=-(-count // _REPEATED))
    logits = session.extend((pattern * _REPEATED)[:count])
    return np.argsort(-np.asarray(logits), kind="stable")[:limit].tolist()


def _step(session: Session, choose: Sampler, controller: Controller, tokens: list[int]) -> None:
    """What decoding does for a tree of so many nodes, with two children to each; nothing stays in the session. Drafting
    is part of it where it is not timed by levels, and so is learning from it."""
    length = session.length
    if len(tokens) == 1:
        choose(session.step(tokens[0]))
    else:
        controller.choose(len(tokens) - 1)
        if not session.drafter.by_level:
            session.drafter.draft(tokens[0], TreeShape(len(tokens), len(tokens) - 1, TOP_K))
        tree = Tree(tokens, [-1, *((node - 1) // 2 for node in range(1, len(tokens)))])
        path, drawn = choose.accept(tree, session.tree(tree.tokens, tree.parents).logits)
        session.commit(path)
        controller.observe(tree, [tokens[0], *drawn[:-1]])
    session.wait()
    session.rollback(length)


def _try(session: Session, choose: Sampler, controller: Controller, token: int) -> None:
    """A plain pass for which the drafter is asked in vain, or only to learn from what it says."""
    length = session.length
    tree = Tree([token], [-1])
    if not session.drafter.by_level:
        tree = session.drafter.draft(token, TreeShape(_DRAFT_NODES, _DRAFT_NODES - 1, TOP_K))
    controller.choose(_DRAFT_NODES)
    choose(session.step(token))
    controller.observe(tree if len(tree) > 1 else Tree([token, token], [-1, 0]), [token])
    session.wait()
    session.rollback(length)


def _read(path: Path, key: dict[str, Any]) -> CostTable | None:
    """The table of a cache entry; None when there is none for ``key`` that can be used."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return CostTable.from_dict(entry["costs"]) if entry["key"] == key else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _write(path: Path, key: dict[str, Any], table: CostTable) -> None:
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"key": key, "costs": asdict(table)}), encoding="utf-8")
