"""Queries of latent attention: the fused kernel equals its parts, and they equal the equations."""

import numpy as np
import pytest
from harness import MAX_TOKENS, Out, check_rows, handed_on, normal, run, same_bits, stored_matrix

from schedules import activations, cpu, twins
from schedules.rope_table import rope_table

POSITIONS = 300


class Case:
    """Random inputs of a shape: heads, inputs, nope, rope, latent."""

    def __init__(self, kind, rng, heads, inputs, nope, rope, latent):
        self.kind, self.shape = kind, (heads, inputs, nope, rope, latent)
        self.x, self.values = handed_on(normal(rng, MAX_TOKENS, inputs), kind.activations)
        self.table = rope_table(POSITIONS, rope, 10000.0)
        self.pos = rng.integers(0, POSITIONS, MAX_TOKENS).astype("int32")
        self.pos[:2] = 0, POSITIONS - 1
        tile = kind.target.tiles.output_tile
        self.q_up, self.packed_q_up = stored_matrix(rng, kind.weight_format, tile, heads, nope + rope, inputs)
        self.k_up, self.packed_k_up = stored_matrix(rng, kind.weight_format, tile, heads, latent, nope)

    def __call__(self, n):
        heads, inputs, nope, rope, latent = self.shape
        func = cpu.latent_query(self.kind.target.tiles, heads, inputs, nope, rope, latent, POSITIONS,
                                self.kind.weight_format, self.kind.activations)
        return run(func, self.kind.target, self.x[:n], self.packed_q_up, self.packed_k_up, self.pos[:n], self.table,
                   Out((n, heads, latent + rope)))

    def parts(self):
        """The same from the kernels ``linear`` and ``rope_query``, head by head."""
        heads, inputs, nope, rope, latent = self.shape
        target, weight_format, mode = self.kind
        for head in range(heads):
            q = self._linear(inputs, nope + rope, self.x, self.packed_q_up[head])
            absorbed = self._linear(nope, latent, activations.encode(q[:, :nope], mode), self.packed_k_up[head])
            func = cpu.rope_query(target.tiles, 1, rope, POSITIONS, x_width=rope)
            rotated = run(func, target, q[:, nope:], self.pos, self.table, Out((MAX_TOKENS, 1, rope)))
            yield np.concatenate([absorbed, rotated[:, 0]], axis=-1)

    def _linear(self, inputs, outputs, x, packed):
        target, weight_format, mode = self.kind
        func = cpu.linear(target.tiles, inputs, outputs, weight_format, mode)
        return run(func, target, x, packed, Out((len(x), outputs)))


@pytest.mark.parametrize("shape", [(2, 96, 32, 64, 64), (3, 45, 40, 6, 33)], ids=str)
def test_latent_query(kind, rng, shape):
    case = Case(kind, rng, *shape)
    whole = np.stack(list(case.parts()), axis=1)
    if kind.activations == "f32":
        check_rows(case, twins.latent_query(case.values, case.q_up, case.k_up, case.pos, case.table))
    else:
        check_rows(case, whole, tolerance=0.0)
    assert same_bits(case(MAX_TOKENS), whole)
