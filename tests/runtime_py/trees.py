"""For tests of the speculative loop: drafters that know the text to come and make of it what they want, and trees in
another order."""

import numpy as np

from runtime_py.tree import Tree


class Scribe:
    """Checks that it is told of every change of its session: ``session``, set after both were made, holds what it
    was told. Drafts nothing."""

    name, by_level = "scribe", False

    def __init__(self):
        self.tokens, self.shapes, self.hidden, self.session = [], [], None, None

    def extend(self, tokens, hidden):
        assert hidden is None or np.asarray(hidden).dtype == np.float32 and len(hidden) == len(tokens)
        self.tokens += tokens

    def rollback(self, length):
        assert length <= len(self.tokens) or length == 0
        del self.tokens[length:]

    def draft(self, root, shape):
        assert self.session is None or self.tokens == self.session.tokens
        self.shapes.append(shape)
        return Tree([root], [-1])


class RandomDrafter(Scribe):
    """Trees of any form and, but for ``right`` of their nodes, of random tokens: right nodes carry the token that the
    text has at their level. ``right`` 0: every node carries a wrong one."""

    name = "random"

    def __init__(self, text, vocab, right, seed=0):
        super().__init__()
        self._text, self._vocab, self._right, self._rng = text, vocab, right, np.random.default_rng(seed)

    def draft(self, root, shape):
        super().draft(root, shape)
        rng, place = self._rng, len(self.tokens)
        tokens, parents, levels = [root], [-1], [0]
        chain = rng.random() < 0.5  # else anything from a star to a chain
        parent_draws, right_draws = rng.random((2, shape.size)).tolist()
        shifts = rng.integers(1, self._vocab, shape.size).tolist()
        for node in range(1, shape.size):
            fitting = [other for other in range(node) if levels[other] < shape.depth]
            if chain:
                fitting = fitting[-3:]
            parent = fitting[int(parent_draws[node] * len(fitting))]
            ahead = place + levels[parent] + 1
            right = self._text[ahead] if ahead < len(self._text) else 0
            tokens.append(right if right_draws[node] < self._right else (right + shifts[node]) % self._vocab)
            parents.append(parent)
            levels.append(levels[parent] + 1)
        return Tree(tokens, parents)


def reordered(tree, rng):
    """The tree with its nodes in a random order, parents still before children; and where each node went, [n]."""
    order = [0]
    while len(order) < len(tree):
        order.append(int(rng.choice([node for node in range(1, len(tree))
                                     if node not in order and tree.parents[node] in order])))
    place = np.argsort(order).tolist()
    return Tree([tree.tokens[node] for node in order], [-1, *(place[tree.parents[node]] for node in order[1:])]), place
