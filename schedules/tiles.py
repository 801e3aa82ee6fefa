"""Every number that differs between processors, in one table, and the limits all kernels share."""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_TREE_NODES = 64  # bits of a token's ancestor mask


class Tiles:
    """What weights in memory depend on."""

    output_tile: int

    def expert_tile(self, expert_size: int) -> int:
        """Widest tile, at most ``output_tile``, that divides a multiple of 8 without padding."""
        tile = self.output_tile
        while expert_size % tile:
            tile //= 2
        return tile


@dataclass(frozen=True)
class CpuTiles(Tiles):
    """Register tiles of one vector unit.

    ``lanes``: float32 lanes of a register. ``vectors``: registers per row of an output tile. ``token_tiles``: rows
    computed together, chosen by the number of tokens (ascending, first is 1). ``q4_token_tiles``: the same for 4-bit
    weights, whose tile is 32 outputs wide. ``score_tile``: heads x keys of attention scored together; ``value_tile``:
    heads x registers of values they add together. ``latent_splits``: parts that the heads of latent attention, which
    share keys, are cut into, so that one token occupies as many threads. ``parallel_rows``: from this many rows on, a
    small per-row kernel is worth a parallel launch. ``stream_tokens``: up to this many tokens the experts' kernels
    are bound by memory and read long contiguous runs; beyond, they balance threads. ``down_slices``: contiguous parts
    that the outputs of the down projection are then cut into. ``dot``: LLVM's name of the instruction that adds four
    products of bytes to each int32 lane, if there is one; its kernels use ``coded_token_tiles``, for one plane of
    codes and for two.
    """

    lanes: int
    vectors: int
    token_tiles: tuple[int, ...]
    q4_token_tiles: tuple[int, ...]
    score_tile: tuple[int, int]
    value_tile: tuple[int, int]
    latent_splits: int = 2
    parallel_rows: int = 16
    stream_tokens: int = 4
    down_slices: int = 8
    dot: str = ""
    coded_token_tiles: tuple[tuple[int, ...], ...] = ()

    @property
    def output_tile(self) -> int:
        """Outputs computed together by a linear kernel; its weights are padded to a multiple."""
        return self.lanes * self.vectors


# Accumulators per tile = token_tiles[-1] * vectors (attention: the product of a tile); with the weights and one
# broadcast they must fit the register file: 32 registers on AVX-512 and NEON, 16 on AVX2 and SSE. Of coded tiles the
# integer sums must fit (tokens x planes x 32 outputs); their float accumulators are used once per group and may spill.
CPU_TILES: dict[str, CpuTiles] = {
    "avx512": CpuTiles(lanes=16, vectors=2, token_tiles=(1, 4, 8), q4_token_tiles=(1, 4, 8),
                       score_tile=(4, 4), value_tile=(7, 3)),
    "avx2": CpuTiles(lanes=8, vectors=2, token_tiles=(1, 4), q4_token_tiles=(1, 2),
                     score_tile=(2, 4), value_tile=(4, 2)),
    "neon": CpuTiles(lanes=4, vectors=4, token_tiles=(1, 4), q4_token_tiles=(1, 2),
                     score_tile=(4, 4), value_tile=(4, 4)),
    "sse": CpuTiles(lanes=4, vectors=2, token_tiles=(1, 4), q4_token_tiles=(1,),
                    score_tile=(2, 4), value_tile=(4, 2)),
}
CPU_TILES |= {
    "avx512vnni": replace(CPU_TILES["avx512"], dot="llvm.x86.avx512.vpdpbusd.512",
                          coded_token_tiles=((1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6))),
    "avxvnni": replace(CPU_TILES["avx2"], dot="llvm.x86.avx512.vpdpbusd.256", coded_token_tiles=((1, 2), (1,))),
    "dotprod": replace(CPU_TILES["neon"], dot="llvm.aarch64.neon.sdot.v4i32.v16i8", coded_token_tiles=((1, 2), (1,))),
}


@dataclass(frozen=True)
class GpuTiles(Tiles):
    """Work-groups of one kind of GPU.

    A work-group of a matrix kernel has ``slices`` work-items for each of ``output_tile`` outputs. ``load_bytes``: what
    a work-item reads of a matrix at once (4, 8 or 16), at most ``load_lanes`` numbers (Metal has no longer vectors):
    the weights of neighbouring outputs, whose sums it keeps, for a share of the inputs; the sums are added up in
    threadgroup memory. ``token_tiles``: rows computed together, a kernel each; the smallest that holds all rows, else
    the largest. ``sums``: rows times outputs of a work-item, at most.
    ``prefill_tile``: rows computed together in passes of more tokens than a tree has, where the ``slices`` share an
    output's rows and not its inputs; fewer where threadgroup memory does not suffice, 0: as for smaller passes.
    ``local_bytes``: threadgroup memory that a kernel may use. ``tensor_cores``: whether kernels use NVIDIA's.
    """

    slices: int
    token_tiles: tuple[int, ...]
    local_bytes: int
    prefill_tile: int = 0
    load_bytes: int = 16
    load_lanes: int = 8
    sums: int = 32
    output_tile: int = 32
    tensor_cores: bool = False

    @property
    def items(self) -> int:
        """Work-items of a work-group."""
        return self.output_tile * self.slices

    def attention_heads(self, group: int) -> int:
        """Heads of a work-group, of ``group`` that share keys: a divisor, at most 4."""
        return next(heads for heads in (4, 3, 2, 1) if group % heads == 0)

    def attention_block(self, row_bytes: int) -> int:
        """Rows of the cache held in threadgroup memory: at most 16, in half of it; one, which the target's limits then
        refuse, where none fits."""
        return next((rows for rows in (16, 8, 4, 2) if rows * row_bytes <= self.local_bytes // 2), 1)


# Threadgroup memory: partial sums of a few rows at a time take a quarter of it; a prefill tile, 8 rows for each slice,
# 128 per row and 4096. "opencl" has no such tile: the drivers that it was measured with run on processors, where caches
# do as much. Registers: a work-item of Mali has 64, one of Adreno about as many in groups of 256; 32 sums leave half of
# them for weights, inputs and indices. NVIDIA's have up to 255.
GPU_TILES: dict[str, GpuTiles] = {
    "adreno": GpuTiles(slices=8, token_tiles=(1, 4, 8), local_bytes=32768, prefill_tile=64),
    "mali": GpuTiles(slices=4, token_tiles=(1, 4, 8), local_bytes=32768, prefill_tile=32),
    "generic": GpuTiles(slices=4, token_tiles=(1, 4, 8), local_bytes=16384, prefill_tile=32),
    "cuda": GpuTiles(slices=8, token_tiles=(1, 4, 8, 16), sums=64, local_bytes=49152, prefill_tile=64),
    "metal": GpuTiles(slices=8, token_tiles=(1, 4, 8), local_bytes=32768, prefill_tile=64, load_lanes=4),
    "iphone": GpuTiles(slices=4, token_tiles=(1, 4, 8), local_bytes=32768, prefill_tile=32, load_lanes=4),
    "opencl": GpuTiles(slices=4, token_tiles=(1, 4, 8), local_bytes=32768),
}
