#!/usr/bin/env python3
"""Time one pass of an artifact with the sparse FFN against its dense twin, which computes every expert.

Passes alternate, and so does which goes first, so that both see the same machine; times are medians with their range.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from blockffn_mlc.errors import UserError  # noqa: E402
from runtime_py.commands.common import positive_int  # noqa: E402
from runtime_py.engine import Engine  # noqa: E402
from runtime_py.files import read_text  # noqa: E402


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("--text-file", metavar="F", help="tokens to feed (default: random ones)")
    parser.add_argument("--tokens", type=counts, default="1,8,32,128", metavar="LIST",
                        help="tokens per pass (default: 1,8,32,128)")
    parser.add_argument("--depth", type=positive_int, default=64, metavar="N",
                        help="tokens cached before (default: 64)")
    parser.add_argument("-r", "--repeat", type=positive_int, default=7, metavar="N",
                        help="passes of each kind (default: 7)")
    parser.add_argument("--threads", type=positive_int, metavar="N")
    return parser.parse_args(argv)


def counts(text: str) -> list[int]:
    """argparse type: positive integers, separated by commas."""
    return [positive_int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    engine = Engine.load(arguments.artifact, arguments.threads)
    vocab = engine.artifact.config.vocab_size
    ids = (engine.encode(read_text(arguments.text_file)) if arguments.text_file is not None
           else np.random.default_rng(0).integers(0, vocab, 1 << 16).tolist())
    check_lengths(engine, ids, arguments.depth, max(arguments.tokens))
    print(f"{engine.artifact.name}, {engine.artifact.chat_config['blockffn']['host']}, {engine.threads} thread(s), "
          f"{arguments.depth} tokens cached, median of {arguments.repeat} (range)")
    print("| tokens | sparse ms | dense ms | sparse/dense | active | union |\n|---|---|---|---|---|---|")
    for count in arguments.tokens:
        times, active, union = compare(engine, ids, count, arguments.depth, arguments.repeat)
        ratio = statistics.median(sparse / dense for sparse, dense in zip(times[False], times[True]))
        cells = [f"{statistics.median(t) * 1e3:.2f} ({min(t) * 1e3:.2f}-{max(t) * 1e3:.2f})" for t in times.values()]
        print(f"| {count} | {cells[0]} | {cells[1]} | {ratio:.2f} | {active:.1%} | {union:.1%} |", flush=True)


def check_lengths(engine: Engine, ids: list[int], depth: int, count: int) -> None:
    """Raises UserError when ``count`` tokens behind ``depth`` cached ones exceed the artifact or the text."""
    artifact = engine.artifact
    for name, needed, limit in (("tokens of a pass", count, artifact.prefill_chunk_size),
                                ("tokens cached before", depth, artifact.prefill_chunk_size),
                                ("tokens in all", depth + count, artifact.context_window_size)):
        if needed > limit:
            raise UserError(f"{needed} {name}: this artifact takes at most {limit}; lower --tokens or --depth")
    if len(engine.session().checked(ids)) < depth + count:
        raise UserError(f"the text has {len(ids)} tokens, {depth + count} are needed; give a longer --text-file, "
                        "or lower --tokens or --depth")


def compare(engine: Engine, ids: list[int], count: int, depth: int,
            repeat: int) -> tuple[dict[bool, list[float]], float, float]:
    """Seconds of sparse (False) and dense (True) passes over the same tokens; mean active and union share."""
    caches = engine.library.new_caches()
    times: dict[bool, list[float]] = {False: [], True: []}
    active, union = [], []
    for turn in range(repeat + 1):  # the first turn warms up
        start = turn * (depth + count) % (len(ids) - depth - count + 1)
        forward(engine, ids[start:start + depth], 0, caches, False)
        for dense in (False, True) if turn % 2 else (True, False):
            begin = time.perf_counter()
            _, scores = forward(engine, ids[start + depth:start + depth + count], depth, caches, dense)
            if turn:
                times[dense].append(time.perf_counter() - begin)
        used = np.stack(scores) != 0
        active.append(used.mean())
        union.append(used.any(axis=1).mean())
    return times, float(np.mean(active[1:])), float(np.mean(union[1:]))


def forward(engine: Engine, ids: list[int], past: int, caches: object, dense: bool) -> tuple:
    """Feed ``ids`` behind ``past`` cached tokens, with the logits of the last."""
    steps = np.arange(len(ids), dtype=np.int32)
    return engine.library.forward(np.array(ids, np.int32), past + steps, past + steps + 1,
                                  np.zeros((len(ids), 2), np.int32), steps[-1:], past, caches, dense=dense)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
