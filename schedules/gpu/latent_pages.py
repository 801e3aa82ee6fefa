"""Latent attention in MLC's paged cache of the MLA kind, which keeps one row, latent | rotated key, per token:
absorbed, the row is the key of all heads and its latent their value (MLC contract, section 1.4)."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import Kernel, factory
from ..tiles import GpuTiles
from .grid import float32, kernel, launch, strided
from .matrix import LANES
from .norm import norm_factor
from .paged_attention import PAGE, Pages, Task, auxiliary, sequence_of, shifted
from .rope import rotate


@factory
def latent_rows(tiles: GpuTiles, heads: int, latent: int, rope: int, positions: int, eps: float, *, x_width: int,
                offset: int, weight_dtype: str, dtype: str) -> tvm.tirx.PrimFunc:
    """Queries and the cache's rows rms_norm(x[t, offset:][:latent]) * weight | rope(x[t, offset + latent:][:rope]), in
    the cache's type. A work-group takes a token.

    Parameters: q f32 [n, heads, latent + rope]; x f32 [n, x_width]; weight ``weight_dtype`` [latent]; pos int32 [n];
    table f32 [positions, rope] (cos, then sin); queries ``dtype`` [n, heads, latent + rope]; rows ``dtype``
    [n, latent + rope].
    """
    with kernel(__name__) as k:
        n, dim = k.rows_var(), latent + rope
        q = k.tensor((n, heads, dim))
        x = k.tensor((n, x_width))
        weight = k.tensor((latent,), weight_dtype)
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        queries, rows = k.tensor((n, heads, dim), dtype), k.tensor((n, dim), dtype)

        with launch((n,), (tiles.items,)) as ((row,), (item,)):
            def write(value: Any, i: Any) -> None:
                T.buffer_store(rows, T.cast(value, dtype), [row, i])

            factor = norm_factor(tiles, item, latent, eps, lambda i: x[row, offset + i])
            with T.serial(0, heads) as head:
                strided(item, dim, tiles.items, lambda i: T.buffer_store(
                    queries, T.cast(q[row, head, i], dtype), [row, head, i]))
            strided(item, latent, tiles.items, lambda i: write(x[row, offset + i] * factor * float32(weight[i]), i))
            rotate(item, tiles.items, rope, table, T.bind(pos[row]), lambda i: x[row, offset + latent + i],
                   lambda value, i: write(value, latent + i))
    return k.func


@factory
def latent_prefill(tiles: GpuTiles, heads: int, latent: int, rope: int, dtype: str) -> tvm.tirx.PrimFunc:
    """Tokens of several sequences over their pages, which hold them already where ``causal``.

    Parameters: q ``dtype`` [n, heads, latent + rope]; q_indptr int32 [b + 1]: where each sequence's tokens begin; pages
    ``dtype`` [pages, 16, latent + rope]; page_indptr, page_values, length_info as for ``paged_decode``; output
    ``dtype`` [n, heads, latent]; lse f32 [n, heads]; causal, sm_scale.
    """
    with kernel(__name__) as k:
        n, dim = k.rows_var(), latent + rope
        q = k.tensor((n, heads, dim), dtype)
        starts = auxiliary(k.rows_var())
        pages = _LatentPages(k, dim, dtype)
        task = Task(k, tiles, n, heads, 1, dim, dtype, q, latent)
        causal, scale = T.arg("causal", T.int32()), T.arg("sm_scale", T.float32())
        with task.launched(scale) as row:
            sequence = sequence_of(starts, row)
            length = pages.length(sequence)
            task.attend_rows(row, starts, sequence, length, causal, None,
                             lambda j, head, i: pages.element(sequence, j, head, i))
    return k.func


@factory
def merge_latents(heads: int, dim: int, dtype: str) -> tvm.tirx.PrimFunc:
    """Attention to new tokens and to those in the cache, from attention to each. Where every sequence has one new token
    the runtime puts it into the cache beforehand: then attention to the cache is all of it.

    Parameters: values ``dtype`` [n, heads, dim]; lse f32 [n, heads]: base-2 logarithms of the softmaxes' sums; the same
    of the cache; more: new tokens beyond one for each sequence; merged ``dtype`` [n, heads, dim]. A work-group takes a
    head of a token.
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        values, lse, cached, cached_lse = (k.tensor(shape, kind) for _ in range(2) for shape, kind in (
            ((n, heads, dim), dtype), ((n, heads), "float32")))
        more = k.scalar("more")
        merged = k.tensor((n, heads, dim), dtype)
        with launch((heads, n), (LANES,)) as ((head, row), (item,)):
            distance = T.bind(lse[row, head] - cached_lse[row, head])
            share = T.bind(T.Select(more == 0, T.float32(0), T.float32(1) / (T.float32(1) + T.exp2(-distance))))
            strided(item, dim, LANES, lambda i: T.buffer_store(merged, T.cast(
                float32(values[row, head, i]) * share + float32(cached[row, head, i]) * (T.float32(1) - share), dtype),
                [row, head, i]))
    return k.func


class _LatentPages(Pages):
    """The parameters pages, page_indptr, page_values, and length_info behind them."""

    def __init__(self, k: Kernel, dim: int, dtype: str) -> None:
        self._pages = shifted(k.rows_var(), PAGE, dim, dtype=dtype)
        self._declare_table(k)

    def element(self, sequence: Any, j: Any, head: Any, i: Any) -> Any:
        """Column i of the row of token j."""
        return self._pages[self._page(sequence, j), T.truncmod(j, PAGE), i]
