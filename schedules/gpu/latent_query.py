"""Queries of multi-head latent attention: projection per head, rotation, and the absorbed key projection."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import barrier, ceil_div, kernel, launch, shared
from .linear import token_rows
from .matrix import LANES, Matrix, Row, matrix
from .product import Product, Variant, by_tokens, variants
from .rope import rotate

_MOST_ROWS = 4  # of a sliced tile: two products unroll them


@factory
def latent_query(tiles: GpuTiles, heads: int, inputs: int, nope: int, rope: int, latent: int, positions: int,
                 weight_format: str, activations: str = "f32") -> tvm.tirx.PrimFunc:
    """q[t, h] = k_up[h] (q_up[h] x[t])[:nope] | rotated (q_up[h] x[t])[nope:]; parameters as the CPU kernel's. A
    work-group takes a head of a tile of tokens; what q_up gives stays in threadgroup memory."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, inputs))
        q_up = matrix(k, tiles, weight_format, (heads, nope + rope, inputs))
        k_up = matrix(k, tiles, weight_format, (heads, latent, nope))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        q = k.tensor((n, heads, latent + rope))

        def emit(variant: Variant) -> None:
            tokens = variant.tokens
            groups = ceil_div(n, tokens), heads  # those that read the same weights are neighbours
            with launch(groups, (LANES, tiles.slices)) as ((block, head), (lane, part)):
                first = T.bind(block * tokens)
                product, own = Product(tiles, variant, q_up, lane, part), shared((tokens, nope + rope))
                project(product, q_up, (head,), token_rows(x, first, product.rows, n), lane,
                        lambda t, value, output: T.buffer_store(own, value, [t, output]))

                def absorbed(t: Any, value: Any, output: Any) -> None:
                    with when(first + t < n):
                        T.buffer_store(q, value, [first + t, head, output])

                project(product, k_up, (head,), [Row(own, (t,)) for t in product.rows], lane, absorbed)
                with T.serial(0, tokens) as t:
                    with when(first + t < n):
                        rotate(part * LANES + lane, tiles.items, rope, table, T.bind(pos[first + t]),
                               lambda i: own[t, nope + i],
                               lambda value, i: T.buffer_store(q, value, [first + t, head, latent + i]))

        by_tokens(n, variants(tiles, q_up, row_bytes=4 * (nope + rope), most=_MOST_ROWS), emit)
    return k.func


def project(product: Product, w: Matrix, outer: tuple[Any, ...], rows: list[Row], lane: Any, write: Any) -> None:
    """``write(t, rows[t] . w[outer, output], output)`` for all rows t of a tile and all outputs, by one work-group.
    Contains barriers, the last one behind all writes."""
    with T.serial(0, w.tiles) as tile:
        output = w.output(tile, lane)

        def owned(t: Any, value: Any) -> None:
            with when(w.owns(tile, lane)):
                write(t, value, output)

        product.multiply(w, outer, tile, rows, owned)
        barrier()
