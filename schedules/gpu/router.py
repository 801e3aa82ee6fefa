"""The router: norm of the layer's input, expert logits, ReLU, norm over the expert axis (BlockFFN, eq. 2-3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import Local, barrier, ceil_div, float32, kernel, launch, splat, strided, total
from .linear import token_rows
from .matrix import LANES, matrix
from .norm import inverse_root, norm_factor
from .product import Product, Variant, by_tokens, sliced_variants

_MOST_TOKENS = 8  # of a tile: the sums of squares take a float of each work-item for each token


@factory
def router(tiles: GpuTiles, experts: int, hidden: int, norm: str, eps: float, norm_scale: float,
           dtype: str = "float32", activations: str = "f32") -> tvm.tirx.PrimFunc:
    """h = rms_norm(x); scores = norm(relu(router(h))); parameters as the CPU kernel's. The first launch computes h and
    relu(router(h)), a tile of experts for a tile of tokens in each work-group; the second, unless ``norm`` is "none",
    the norm of each token's scores."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, hidden))
        input_weight = k.tensor((hidden,), dtype)
        w = matrix(k, tiles, dtype, (experts, hidden))
        weight = k.tensor((experts,), dtype) if norm == "rms" else None
        h = k.tensor((n, hidden))
        scores = k.tensor((n, experts))

        def emit(variant: Variant) -> None:
            tokens = variant.tokens
            with launch((w.tiles, ceil_div(n, tokens)), (LANES, tiles.slices)) as ((tile, block), (lane, part)):
                first, output, item = block * tokens, w.output(tile, lane), part * LANES + lane
                product = Product(tiles, variant, w, lane, part)
                squares = Local(tokens, 0.0)

                def square(i: Any) -> None:
                    for t in range(tokens):
                        value = T.bind(x[T.min(first + t, n - 1), i])
                        squares.add(t, value * value)

                strided(item, hidden, tiles.items, square)
                inverse = Local(tokens)
                for t, value in enumerate(total(item, tiles.items, *(squares[t] for t in range(tokens)))):
                    inverse.set(t, inverse_root(value, hidden, eps))

                def normalise(i: Any) -> None:
                    scale = T.bind(float32(input_weight[i]))
                    for t in range(tokens):
                        with when(first + t < n):
                            T.buffer_store(h, x[first + t, i] * inverse[t] * scale, [first + t, i])

                with when(tile == 0):
                    strided(item, hidden, tiles.items, normalise)
                sums, rows = w.sums(tokens), token_rows(x, first, range(tokens), n)
                strided(product.slice, w.octets, product.slices,
                        lambda octet: w.accumulate(sums, (), tile, product.number, rows, octet, input_weight))
                for i in range(sums.size):
                    sums.set(i, sums[i] * splat(inverse[i // w.chunks], sums[i]))

                def write(t: Any, value: Any) -> None:
                    with when(T.And(w.owns(tile, lane), first + t < n)):
                        T.buffer_store(scores, T.max(value, T.float32(0)), [first + t, output])

                barrier()  # before ``finish`` reuses the memory of ``total``
                product.finish(w, sums, write)

        by_tokens(n, sliced_variants(tiles, w, _MOST_TOKENS), emit)
        if norm != "none":
            with launch((n,), (tiles.items,)) as ((row,), (item,)):
                if norm == "rms":
                    factor = norm_factor(tiles, item, experts, eps, lambda i: scores[row, i])
                else:
                    factor = _sum_factor(tiles, item, experts, norm_scale, lambda i: scores[row, i])

                def scale(i: Any) -> None:
                    value = scores[row, i] * factor
                    T.buffer_store(scores, value if weight is None else value * float32(weight[i]), [row, i])

                strided(item, experts, tiles.items, scale)
    return k.func


def _sum_factor(tiles: GpuTiles, item: Any, width: int, scale: float, read: Callable[[Any], Any]) -> Any:
    """1 / (scale * the sum of read(i) over i < ``width`` + 1e-5), for all items of a group. Contains barriers."""
    part = Local(1, 0.0)
    strided(item, width, tiles.items, lambda i: part.add(0, read(i)))
    (result,) = total(item, tiles.items, part[0])
    return T.bind(T.float32(1) / (result * T.float32(scale) + T.float32(1e-5)))
