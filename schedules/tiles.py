"""Every number that differs between processors, in one table, and the limits all kernels share."""

from __future__ import annotations

from dataclasses import dataclass

MAX_TREE_NODES = 64  # bits of a token's ancestor mask


@dataclass(frozen=True)
class CpuTiles:
    """Register tiles of one vector unit.

    ``lanes``: float32 lanes of a register. ``vectors``: registers per row of an output tile.
    ``token_tiles``: rows computed together, chosen by the number of tokens (ascending, first is 1).
    ``q4_token_tiles``: the same for 4-bit weights, whose tile is 32 outputs wide. ``value_vectors``:
    registers of attention output held at once. ``key_tile``: keys scored together; ``key_block``: keys copied
    to float32 at a time (a block of rows should fit the L1 cache or half of L2). ``parallel_rows``: from this
    many rows on, a small per-row kernel is worth a parallel launch.
    """

    lanes: int
    vectors: int
    token_tiles: tuple[int, ...]
    value_vectors: int
    q4_token_tiles: tuple[int, ...]
    score_heads: int = 4
    score_keys: int = 4
    value_heads: int = 4
    parallel_rows: int = 16

    @property
    def output_tile(self) -> int:
        """Outputs computed together by a linear kernel; its weights are padded to a multiple."""
        return self.lanes * self.vectors

    def expert_tile(self, expert_size: int) -> int:
        """Widest tile, at most ``output_tile``, that divides a multiple of 8 without padding."""
        tile = self.output_tile
        while expert_size % tile:
            tile //= 2
        return tile


# Accumulators per tile = token_tiles[-1] * vectors; with the weights and one broadcast they must
# fit the register file: 32 registers on AVX-512 and NEON, 16 on AVX2 and SSE.
CPU_TILES: dict[str, CpuTiles] = {
    "avx512": CpuTiles(lanes=16, vectors=2, token_tiles=(1, 4, 8), value_vectors=4, q4_token_tiles=(1, 4, 8)),
    "avx2": CpuTiles(lanes=8, vectors=2, token_tiles=(1, 4), value_vectors=2, q4_token_tiles=(1, 2)),
    "neon": CpuTiles(lanes=4, vectors=4, token_tiles=(1, 4), value_vectors=4, q4_token_tiles=(1, 2)),
    "sse": CpuTiles(lanes=4, vectors=2, token_tiles=(1, 4), value_vectors=2, q4_token_tiles=(1,)),
}
