"""The controller in simulated time: recorded traces of drafted trees, recorded cost tables, no clock.

At each position of a trace's text lies the largest tree that the drafter proposed there and the path that the text
takes through it (tools/acceptance_traces.py). A smaller shape gets its part of that tree, so whatever a controller
chooses has a known outcome. Token ids are positions: the token at position t of the text is t, any other is -1.
"""

import json
from functools import cache, cached_property
from pathlib import Path

from runtime_py.cost_table import CostTable
from runtime_py.speculation import FixedShape
from runtime_py.tree import Tree

DATA = Path(__file__).parent / "data"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/"
TOKENS = 256


class Trace:
    """``steps[t]``: the parents of the tree at position t and the path through it, without the root."""

    def __init__(self, steps):
        self.steps = steps
        self._parts = {}

    @classmethod
    @cache
    def load(cls, name):
        steps = json.loads((DATA / f"trace-{name}.json").read_text())["steps"]
        return cls([([-1, *map(DIGITS.index, parents)], path) for parents, path in steps])

    def alternating(self, other, every=128):
        """This trace and another in turn."""
        pairs = zip(self.steps, other.steps)
        return Trace([pair[position // every % 2] for position, pair in enumerate(pairs)])

    @cached_property
    def starts(self):
        """Positions to begin at: how a fixed shape falls on 256 tokens is in part luck."""
        return range(0, len(self.steps) - TOKENS + 1, 32)

    def part(self, position, shape):
        """The tree of ``shape`` at a position, and the text's path through it."""
        key = position, shape.size, shape.depth
        if key not in self._parts:
            parents, path = self.steps[position]
            levels = Tree(parents, parents).levels  # whatever the tokens
            kept = [node for node, level in enumerate(levels) if level <= shape.depth][:shape.size]
            place = {node: i for i, node in enumerate(kept)}
            tokens = [-1] * len(kept)
            for level, node in enumerate([0, *path]):
                if node in place:
                    tokens[place[node]] = position + level
            self._parts[key] = (Tree(tokens, [-1, *(place[parents[node]] for node in kept[1:])]),
                                [place[node] for node in path if node in place])
        return self._parts[key]


ZERO = {"ngram": Trace([([-1, *range(63)], [])] * 448),  # a chain, always wrong
        "eagle": Trace([([-1, *[0] * 10, *range(1, 54)], [])] * 448)}


def cost_tables():
    raw = json.loads((DATA / "cost_tables.json").read_text())
    return {name: CostTable.from_dict(values) for name, values in raw.items()}


def simulate(trace, costs, controller, start=0, sizes=None):
    """Seconds per token of 256 tokens, as ``speculation.advance`` would decode them. ``sizes`` collects what was
    verified in every pass."""
    position, seconds = start, 0.0
    while position < start + TOKENS:
        shape = controller.choose(start + TOKENS - position - 1)
        drafted, accepted, size = None, 0, 1
        if shape.size > 1 and shape.depth:
            drafted, path = trace.part(position, shape)
            size = len(controller.cut(drafted))
            accepted = sum(node < size for node in path)
            seconds += costs.drafting(shape.depth)
        seconds += costs.by_nodes[size] + (costs.try_seconds if size == 1 and drafted else 0.0)
        controller.observe(drafted, [*range(position, position + 1 + accepted)])
        position += 1 + accepted
        if sizes is not None:
            sizes.append(size)
    return seconds / (position - start)


def mean_time(trace, costs, make):
    """Seconds per token, over generations from several places of the text. ``make()``: a fresh controller."""
    return sum(simulate(trace, costs, make(), start) for start in trace.starts) / len(trace.starts)


def best_fixed(trace, costs, shapes):
    """Seconds per token of the best fixed shape, and which it is."""
    return min(((mean_time(trace, costs, lambda: FixedShape(shape)), shape) for shape in shapes),
               key=lambda found: found[0])
