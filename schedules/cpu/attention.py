"""Attention over the cache, with a prefix of visible slots and an ancestor mask for trees.

An item of work is one token with a few heads that share keys. It walks the slots the token may see in
ascending order, a block at a time: the block becomes float32 once for all its heads, keys and values at once,
and a running softmax weighs its values, so that every row of the cache is read once.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel, when
from ..tiles import MAX_TREE_NODES, CpuTiles
from .attention_block import BLOCK, HeadGroup
from .matrix import matrix
from .rows import FloatRows, encoded
from .vector import Register, for_lanes, load, prefetch, splat, store


@factory
def attention(tiles: CpuTiles, heads: int, kv_heads: int, slots: int, *, key_dim: int, value_offset: int,
              value_dim: int, width: int, scale: float, cache_dtype: str, v_dim: int = 0,
              weight_format: str = "float32", activations: str = "f32") -> tvm.tirx.PrimFunc:
    """out[t, h] = softmax(scale * q[t, h] . keys) values, over the slots that token t may see; with ``v_dim``,
    v_up[h] of that (MLA: values are latent).

    Parameters: q f32 [n, heads, key_dim]; cache ``cache_dtype`` [slots, kv_heads, width], key at column 0,
    value at ``value_offset`` (MLA: both are the latent); visible int32 [n]: slots 0..visible-1 are seen;
    ancestors int32 [n, 2]: bit b shows slot past+b too; past; v_up [heads, v_dim, value_dim] stored as
    ``weight_format``, if ``v_dim``; out f32 [n, heads * (v_dim or value_dim)].
    Unseen slots are never read, and blocks are cut from the slots seen, so a token's result does not depend on
    its neighbours.
    """
    group = heads // kv_heads
    splits = tiles.latent_splits if kv_heads == 1 and heads > 1 else 1
    share = -(-group // splits)  # heads of an item
    with kernel(__name__) as k:
        n = k.rows_var()
        q = k.tensor((n, heads, key_dim))
        kv = k.tensor((slots, kv_heads, width), cache_dtype)
        visible = k.tensor((n,), "int32")
        ancestors = k.tensor((n, 2), "int32")
        past = k.scalar("past")
        v_up = matrix(k, tiles, weight_format, (heads, v_dim, value_dim), tiles.output_tile,
                      activations) if v_dim else None
        out = k.tensor((n, heads * (v_dim or value_dim)))

        with T.parallel(0, n * (kv_heads * splits)) as item:
            share_of_heads, turn = T.bind(T.floordiv(item, n)), T.bind(T.floormod(item, n))
            # First, last, second, last but one, ...: a thread's share of a causal chunk is as long as any other's.
            half = T.floordiv(turn, 2)
            row = T.bind(T.Select(T.floormod(turn, 2) == 0, half, n - 1 - half))
            kv_head = T.floordiv(share_of_heads, splits)
            # An odd head in the middle is computed by both items, which write the same bits.
            first = T.bind(kv_head * group + T.min(T.floormod(share_of_heads, splits) * share, T.int64(group - share)))
            seen = _SeenSlots(T.cast(visible[row], "int64"), ancestors, row, past)
            head_group = HeadGroup(tiles, share, key_dim, value_offset, value_dim)
            head_group.start(lambda head: lambda i, lanes: load(
                q, row, first + head, i, lanes=lanes) * splat(scale, lanes))
            with T.serial(0, T.floordiv(seen.count + (BLOCK - 1), BLOCK)) as b:
                def cached(j: Any) -> Any:
                    slot = T.bind(seen.slot(b * BLOCK + j))
                    return lambda i, lanes: load(kv, slot, kv_head, i, lanes=lanes)

                def fetch(j: Any, column: Any, columns: int) -> None:
                    slot = seen.slot(T.min((b + 1) * BLOCK + j, seen.count - 1))
                    prefetch(kv, slot, kv_head, column, count=columns)

                head_group.add(T.bind(T.min(seen.count - b * BLOCK, T.int64(BLOCK))), cached, fetch)
            mix = FloatRows(tiles, head_group.mix, value_dim)
            with T.serial(0, share) as head:
                total = Register(1, head_group.total(head))
                mix.write((head,), lambda i, lanes: mix.row(head).read(i, lanes) / splat(total.get(), lanes))
            if v_up is None:
                with T.serial(0, share) as head:
                    for_lanes(value_dim, tiles.lanes, lambda i, lanes: store(
                        out, mix.row(head).read(i, lanes), row, (first + head) * value_dim + i, lanes=lanes))
            else:
                latent = encoded(mix, activations, share, value_dim)
                with T.serial(0, share) as head, T.serial(0, v_up.count) as part:
                    (registers,) = acc = v_up.registers(1)
                    v_up.accumulate(acc, (first + head, part), [latent.row(head)], (first + head, part + 1))
                    v_up.finish(registers, part, lambda value, i, lanes: store(
                        out, value, row, (first + head) * v_dim + i, lanes=lanes))
    return k.func


class _SeenSlots:
    """The slots a token sees, in order: the visible prefix, then the set bits of its mask."""

    def __init__(self, prefix: Any, ancestors: Any, row: Any, past: Any) -> None:
        self._prefix, self._past = prefix, past
        self._nodes = T.alloc_buffer((MAX_TREE_NODES,), "int32")
        found = T.alloc_buffer((1,), "int32")
        T.buffer_store(found, T.int32(0), [0])
        T.buffer_store(self._nodes, T.int32(0), [0])
        any_node = T.bitwise_or(ancestors[row, 0], ancestors[row, 1]) != 0
        with when(any_node), T.serial(0, MAX_TREE_NODES) as bit:
            word = T.shift_right(ancestors[row, T.floordiv(bit, 32)], T.cast(T.floormod(bit, 32), "int32"))
            with when(T.bitwise_and(word, T.int32(1)) != 0):
                T.buffer_store(self._nodes, T.cast(bit, "int32"), [found[0]])
                T.buffer_store(found, found[0] + 1, [0])
        self.count = T.bind(prefix + T.cast(found[0], "int64"))

    def slot(self, i: Any) -> Any:
        """The i-th slot seen."""
        node = self._nodes[T.max(i - self._prefix, T.int64(0))]
        return T.if_then_else(i < self._prefix, i, self._past + T.cast(node, "int64"))
