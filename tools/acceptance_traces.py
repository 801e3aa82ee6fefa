"""Record what drafted trees would have accepted along a text: what the controller's simulation replays.

    python tools/acceptance_traces.py dist/demo-q0f32-cpu --draft ngram --prompt-file TEXT -o trace.json
    python tools/acceptance_traces.py dist/demo-q0f32-cpu --draft eagle --temperature 0.8 --seed 1 -o trace.json

At every position of a text, given or generated, the drafter proposes the largest tree it may. Nodes are in falling
order of score, so the tree and the path that the text takes through it tell the outcome of every smaller shape as well.

JSON: {"drafter", "depth", "steps": [[parents, path], ...]}, one step per position. Character i of ``parents`` is the
parent of node i + 1 in base 64; ``path`` lists the nodes below the root that the text takes.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime_py import Engine, Sampling
from runtime_py.commands.common import note
from runtime_py.files import read_text, replacing
from runtime_py.session import Session
from runtime_py.tree import TreeShape

DIGITS = string.digits + string.ascii_letters + "+/"
DEPTHS = {"ngram": 63, "eagle": 8}
START = 16  # tokens before the first position


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("--draft", choices=DEPTHS, required=True)
    parser.add_argument("--prompt-file", type=Path, help="the text to follow, instead of generating one")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--positions", type=int, default=576)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    engine, count = Engine.load(args.artifact), args.positions + START + 64  # the last tree's path is in the text too
    if args.prompt_file:
        text = engine.encode(read_text(args.prompt_file))[:count]
    else:
        prompt = engine.encode("And it came to pass")
        generation = engine.generate(prompt, count - len(prompt), Sampling(args.temperature, seed=args.seed))
        text = prompt + [token.id for token in generation]
    shape = TreeShape(64, DEPTHS[args.draft], top_k=10)
    steps = list(record(engine.session(args.draft), text, shape))[:args.positions]
    note(f"{len(steps)} positions, {1 + sum(len(path) for _, path in steps) / len(steps):.2f} tokens per tree")
    with replacing(args.output) as temporary:
        temporary.write_text(json.dumps({"drafter": args.draft, "depth": shape.depth, "steps": steps},
                                        separators=(",", ":")))


def record(session: Session, text: Sequence[int], shape: TreeShape) -> Iterator[tuple[str, list[int]]]:
    """Parents and path at every position from START on."""
    session.extend(text[:START])
    for position in range(START, len(text)):
        tree = session.drafter.draft(text[position], shape)
        path, node = [], 0
        for token in text[position + 1:]:
            node = tree.child(node, token)
            if node is None:
                break
            path.append(node)
        yield "".join(DIGITS[parent] for parent in tree.parents[1:]), path
        session.step(text[position])


if __name__ == "__main__":
    main()
