"""A drafter that replays a known text with a chosen error rate: speed against accept length, on any weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..tree import Tree, TreeShape


def accuracy_for(accept_length: float, levels: int) -> float:
    """The accuracy with which chains of ``levels`` drafts bring ``accept_length`` new tokens per pass, the bonus token
    included: 1 + a + ... + a^levels. Raises ValueError for a length that no accuracy brings."""
    if not 1 <= accept_length <= levels + 1:
        raise ValueError(f"expected 1 to {levels + 1} new tokens per pass, which {levels} levels of drafts can bring, "
                         f"found {accept_length:g}")
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if sum(middle**level for level in range(levels + 1)) < accept_length:
            low = middle
        else:
            high = middle
    return high


class ScriptedDrafter:
    """Drafts the tokens of ``script``, the whole text from its first token on, prompt included. Each level is right
    with probability ``accuracy``, independently; what follows a wrong token is wrong. The other nodes of a tree are
    wrong siblings of the first level's: tokens that the script has later, whose experts are those of a good guess,
    then any others. Past the end of the script it proposes nothing."""

    name, by_level = "scripted", False

    def __init__(self, script: Sequence[int], accuracy: float, vocab_size: int, seed: int = 0) -> None:
        """``seed`` makes the errors repeatable. Raises ValueError for an accuracy outside 0 to 1."""
        if not 0 <= accuracy <= 1:
            raise ValueError(f"accuracy: expected a probability, found {accuracy}")
        self._script = list(script)
        self._accuracy = accuracy
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(seed)
        self._length = 0

    def expected_accept_length(self, shape: TreeShape) -> float:
        """Mean number of new tokens per pass, bonus included, while the target writes the script: 1 + a + ... + a^d
        for accuracy a and the d levels that fit into the shape."""
        return sum(self._accuracy**level for level in range(min(shape.depth, shape.size - 1) + 1))

    def extend(self, tokens: Sequence[int], hidden: object) -> None:
        self._length += len(tokens)

    def rollback(self, length: int) -> None:
        self._length = length

    def draft(self, root: int, shape: TreeShape) -> Tree:
        depth = min(shape.depth, shape.size - 1)
        right = self._script[self._length + 1:self._length + 1 + depth]
        if not right:
            return Tree([root], [-1])
        wrong = np.maximum.accumulate(self._rng.random(len(right)) >= self._accuracy)
        spine = [(token + bad) % self._vocab_size for token, bad in zip(right, wrong.tolist())]
        start, missing = self._length + 1, shape.size - 1 - len(spine)
        company = dict.fromkeys([*self._script[start + 1:start + 2 * shape.size],
                                 *((right[0] + 2 + i) % self._vocab_size for i in range(missing + 1))])
        siblings = [token for token in company if token not in (right[0], spine[0])][:missing]
        return Tree([root, *spine, *siblings], [*range(-1, len(spine)), *[0] * len(siblings)])
