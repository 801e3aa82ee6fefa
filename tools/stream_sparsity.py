#!/usr/bin/env python3
"""Measure how sparse synthetic models are along their own token streams, and in random trees beside them.

A tree's nodes hang below random earlier nodes and are drawn from the stream's next 16 tokens, as a good drafter's would
be. Reuse is the share of a token's active experts that the token before used too. The histogram counts tokens by their
share of active experts, averaged over the layers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from blockffn_mlc.errors import UserError  # noqa: E402
from runtime_py.commands.common import positive_int  # noqa: E402
from runtime_py.engine import Engine  # noqa: E402
from runtime_py.sparsity import active_experts, chunk_level_sparsity, token_level_sparsity  # noqa: E402

_TREE_EVERY, _NEIGHBOURS = 64, 16  # tokens
_BINS = np.arange(0.05, 0.301, 0.025)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", metavar="ARTIFACT")
    parser.add_argument("--tokens", type=positive_int, default=2048, metavar="N", help="default: 2048")
    parser.add_argument("--nodes", type=positive_int, default=32, metavar="N", help="nodes of a tree (default: 32)")
    parser.add_argument("--threads", type=positive_int, metavar="N")
    arguments = parser.parse_args(argv)
    print(f"| artifact | TLS (layers) | CLS_8 (layers) | reuse | union of {arguments.nodes} nodes (trees) | "
          + " | ".join(f"{low:.1%}" for low in _BINS[:-1]) + " |\n" + "|---" * (len(_BINS) + 4) + "|")
    try:
        for path in arguments.artifacts:
            print(table_row(path, *measure(Engine.load(path, arguments.threads), arguments.tokens, arguments.nodes)),
                  flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(engine: Engine, tokens: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Active experts of the stream's first ``tokens`` tokens, bool [L, T, E], and the share of experts in the union
    of each tree's nodes and layer, [trees, L]. Raises UserError when the stream or the window is too short."""
    stream = engine.artifact.token_stream
    if stream is None or len(stream) < tokens + _NEIGHBOURS:
        raise UserError(f"{engine.artifact.path}: expected a token stream of at least {tokens + _NEIGHBOURS} tokens, "
                        f"found {'none' if stream is None else len(stream)}; build a NAME@random model")
    random, session = np.random.default_rng(0), engine.session()
    active, unions = [], []
    for start in range(0, tokens, _TREE_EVERY):
        stop = min(start + _TREE_EVERY, tokens)
        active += [active_experts(output.router_scores) for output in session.stream(stream[start:stop])]
        drawn = random.choice(stream[stop:stop + _NEIGHBOURS], nodes)
        parents = [int(random.integers(node)) if node else -1 for node in range(nodes)]
        unions.append(active_experts(session.tree(drawn, parents).router_scores).any(axis=1).mean(axis=1))
    return np.concatenate(active, axis=1), np.array(unions)


def table_row(name: str, active: np.ndarray, unions: np.ndarray) -> str:
    """One row of the table, from what ``measure`` returns."""
    reuse = (active[:, 1:] & active[:, :-1]).sum() / active[:, 1:].sum()
    histogram = np.histogram(active.mean(axis=(0, 2)), _BINS)[0] / active.shape[1]
    union = unions.mean(axis=1)
    levels = [[share(layer) for layer in active]
              for share in (token_level_sparsity, lambda layer: chunk_level_sparsity(layer, 8))]
    cells = [Path(name).name, *(f"{np.mean(level):.1%} ({min(level):.1%}-{max(level):.1%})" for level in levels),
             f"{reuse:.1%}", f"{union.mean():.1%} ({union.min():.1%}-{union.max():.1%})",
             *(f"{share:.0%}" for share in histogram)]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
