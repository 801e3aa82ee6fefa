#!/usr/bin/env python3
"""Speed of speculative decoding against the accept length, and where it breaks even with plain decoding.

A scripted drafter replays the artifact's token stream with a chosen error rate, and the stream, not the largest logit,
says what the model goes on with: so weights may be random. Everything else is what ``generate`` does. Every round
times plain steps, plain steps that compute every expert (dense) and all shapes in turn; figures are medians over
rounds. Break-even: the accept length at which a shape's passes cost as much per token as plain steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from blockffn_mlc.errors import UserError  # noqa: E402
from runtime_py.bench.machine import processor  # noqa: E402
from runtime_py.bench.text import FollowText  # noqa: E402
from runtime_py.commands.common import list_of, positive_int  # noqa: E402
from runtime_py.drafters.scripted import ScriptedDrafter  # noqa: E402
from runtime_py.engine import Engine  # noqa: E402
from runtime_py.files import replacing  # noqa: E402
from runtime_py.plot import check_plot, load_pyplot  # noqa: E402
from runtime_py.speculation import PLAIN, FixedShape, advance  # noqa: E402
from runtime_py.stats import Stats  # noqa: E402
from runtime_py.tree import TreeShape  # noqa: E402

_PROMPT = 64  # tokens


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", metavar="ARTIFACT")
    parser.add_argument("--sizes", type=list_of(int), default=(2, 4, 8, 16, 32), metavar="N,N",
                        help="nodes of the trees (default: 2,4,8,16,32)")
    parser.add_argument("--accuracies", type=list_of(float), default=(0.3, 0.5, 0.7, 0.9, 1.0), metavar="A,A",
                        help="probabilities that a drafted level is right (default: 0.3,0.5,0.7,0.9,1)")
    parser.add_argument("--depth", type=positive_int, default=6, metavar="N", help="levels at most (default: 6)")
    parser.add_argument("--tokens", type=positive_int, default=32, metavar="N",
                        help="per shape, accuracy and round (default: 32)")
    parser.add_argument("-r", "--rounds", type=positive_int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--threads", type=positive_int, metavar="N")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw speed against accept length: .png (needs matplotlib)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.plot is not None:
            check_plot(arguments.plot, (".png",))
        engine = Engine.load(arguments.artifact, arguments.threads)
        shapes = [TreeShape(size, min(size - 1, arguments.depth), 10) for size in arguments.sizes]
        result = measure(engine, shapes, arguments.accuracies, arguments.tokens, arguments.rounds)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1) if arguments.json else table(result))
    if arguments.plot is not None:
        plot(arguments.plot, result)
    return 0


def measure(engine: Engine, shapes: Sequence[TreeShape], accuracies: Sequence[float], tokens: int,
            rounds: int) -> dict[str, Any]:
    """Times per token and accept lengths of every shape and accuracy; see ``table``. Raises UserError when the
    artifact has no token stream that is long enough."""
    stream = engine.artifact.token_stream
    needed = _PROMPT + tokens + max(shape.size for shape in shapes)
    if stream is None or len(stream) < needed or engine.artifact.context_window_size < needed:
        raise UserError(f"{engine.artifact.path}: needs a token stream and a window of {needed} tokens; build a model "
                        "with random weights (--model xlarge@random), or choose fewer --tokens")
    script = stream.tolist()
    plain, dense = (PLAIN, 1.0, False), (PLAIN, 1.0, True)
    cases = [plain, dense, *((shape, accuracy, False) for shape in shapes for accuracy in accuracies)]
    runs: dict[tuple[TreeShape, float, bool], list[Stats]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        for number, (shape, accuracy, every_expert) in enumerate(cases):
            print(f"\rround {turn} of {rounds}, {number + 1} of {len(cases)} ", end="", file=sys.stderr, flush=True)
            stats = _run(engine, script, shape, accuracy, tokens, every_expert, seed=turn)
            if turn:  # the first warms up
                runs[shape, accuracy, every_expert].append(stats)
    print(file=sys.stderr)
    seconds = {case: [s.decode_seconds / s.generated_tokens for s in found] for case, found in runs.items()}
    rows = []
    for case, found in runs.items():
        # Ratios of one round: what slows a machine down for a while slows both.
        speeds, over_dense = ([a / b for a, b in zip(seconds[base], seconds[case])] for base in (plain, dense))
        rows.append({
            "nodes": case[0].size, "depth": case[0].depth, "accuracy": case[1], "dense": case[2],
            "accept_length": statistics.mean(length for s in found for length in s.accept_lengths),
            "pass_ms": statistics.median(s.decode_seconds / s.passes for s in found) * 1e3,
            "speed": statistics.median(speeds), "speed_range": [min(speeds), max(speeds)],
            "speed_over_dense": statistics.median(over_dense), "speed_over_dense_range": [min(over_dense),
                                                                                          max(over_dense)],
            "union_share": statistics.mean(s.union_share or 0.0 for s in found)})
    return {"artifact": engine.artifact.path.name, "processor": processor(), "threads": engine.threads,
            "rounds": rounds, "tokens": tokens, "plain_ms": statistics.median(seconds[plain]) * 1e3,
            "dense_ms": statistics.median(seconds[dense]) * 1e3, "runs": rows}


def _run(engine: Engine, script: list[int], shape: TreeShape, accuracy: float, tokens: int, dense: bool,
         seed: int) -> Stats:
    """Decode ``tokens`` tokens of the script behind its first ones."""
    drafter = ScriptedDrafter(script, accuracy, engine.artifact.config.vocab_size, seed)
    session = engine.session(drafter, dense=dense)
    session.extend(script[:_PROMPT])
    follow, stats = FollowText(script[_PROMPT + 1:]), Stats()  # the root is known
    while stats.generated_tokens < tokens:
        before = stats.draft_seconds + stats.verify_seconds
        root = script[session.length]
        stats.generated_tokens += len(advance(session, root, tokens - stats.generated_tokens, follow, frozenset(),
                                              FixedShape(shape), stats))
        stats.decode_seconds += stats.draft_seconds + stats.verify_seconds - before
    return stats


def table(result: dict[str, Any]) -> str:
    """Markdown: a row per shape; tokens per pass and speed against plain decoding for every accuracy."""
    runs = [run for run in result["runs"] if run["nodes"] > 1]
    accuracies = sorted({run["accuracy"] for run in runs})
    lines = [f"{result['artifact']} on {result['processor']}, {result['threads']} threads; plain decoding "
             f"{result['plain_ms']:.2f} ms a token, {result['dense_ms']:.2f} with every expert. Cells: new tokens per "
             f"pass, speed against plain decoding (range of {result['rounds']} rounds of {result['tokens']} tokens), "
             "speed against plain decoding with every expert.", "",
             "| nodes | levels | ms a pass | breaks even at | "
             + " | ".join(f"right {accuracy:.0%}" for accuracy in accuracies) + " |",
             "|---" * (4 + len(accuracies)) + "|"]
    for nodes in sorted({run["nodes"] for run in runs}):
        row = sorted((run for run in runs if run["nodes"] == nodes), key=lambda run: run["accuracy"])
        milliseconds = statistics.median(run["pass_ms"] for run in row)
        cells = [f"{run['accept_length']:.2f}: {run['speed']:.2f} x ({run['speed_range'][0]:.2f}-"
                 f"{run['speed_range'][1]:.2f}), {run['speed_over_dense']:.2f} x" for run in row]
        lines.append(f"| {nodes} | {row[0]['depth']} | {milliseconds:.2f} | {milliseconds / result['plain_ms']:.2f} | "
                     + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(path: str | Path, result: dict[str, Any]) -> None:
    """Draw ``measure``'s result: for each size of trees a line, what a pass of median time brings by its tokens, and
    the runs themselves with the range of their rounds."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    runs = [run for run in result["runs"] if run["nodes"] > 1]
    for nodes in sorted({run["nodes"] for run in runs}):
        row = [run for run in runs if run["nodes"] == nodes]
        speeds = [run["speed"] for run in row]
        errors = [[run["speed"] - run["speed_range"][0] for run in row],
                  [run["speed_range"][1] - run["speed"] for run in row]]
        dots = axes.errorbar([run["accept_length"] for run in row], speeds, errors, fmt="o", capsize=3,
                             label=f"trees of {nodes}")
        slope = result["plain_ms"] / statistics.median(run["pass_ms"] for run in row)
        most = 1 + row[0]["depth"]
        axes.plot((1, most), (slope, most * slope), color=dots[0].get_color(), linewidth=1)
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="plain decoding")
    axes.axhline(result["plain_ms"] / result["dense_ms"], color="grey", linestyle=":", linewidth=1,
                 label="plain decoding with every expert")
    axes.set(xlabel="new tokens per pass", ylabel="speed against plain decoding", xlim=(1, None), ylim=(0, None))
    axes.set_title(f"{result['artifact']}, {result['processor']}, {result['threads']} threads", parse_math=False)
    figure.legend(loc="outside right upper")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
