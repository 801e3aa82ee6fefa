"""Attention over the cache, with a prefix of visible slots and an ancestor mask for trees.

A work-group is one token with a few heads that share keys. It walks the slots the token may see in ascending order, a
block at a time: the block is copied to threadgroup memory, once for all its heads, keys and values at once, and a
running softmax weighs its values.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import MAX_TREE_NODES, GpuTiles
from .attention_block import Block
from .grid import Local, barrier, kernel, launch, shared
from .latent_query import project
from .matrix import LANES, Row, matrix
from .product import Product, Variant


@factory
def attention(tiles: GpuTiles, heads: int, kv_heads: int, slots: int, *, key_dim: int, value_offset: int,
              value_dim: int, width: int, scale: float, cache_dtype: str, v_dim: int = 0,
              weight_format: str = "float32", activations: str = "f32") -> tvm.tirx.PrimFunc:
    """out[t, h] = softmax(scale * q[t, h] . keys) values, over the slots that token t may see; with ``v_dim``,
    v_up[h] of that; parameters as the CPU kernel's. Unseen slots are never read."""
    group = heads // kv_heads
    share = tiles.attention_heads(group)
    with kernel(__name__) as k:
        n = k.rows_var()
        q = k.tensor((n, heads, key_dim))
        kv = k.tensor((slots, kv_heads, width), cache_dtype)
        visible = k.tensor((n,), "int32")
        ancestors = k.tensor((n, 2), "int32")
        past = k.scalar("past")
        v_up = matrix(k, tiles, weight_format, (heads, v_dim, value_dim)) if v_dim else None
        out = k.tensor((n, heads * (v_dim or value_dim)))

        with launch((heads // share, n), (LANES, tiles.slices)) as ((heads_index, row), (lane, part)):
            item = T.bind(part * LANES + lane)
            first = T.bind(heads_index * share)
            kv_head = T.truncdiv(first, group)
            seen = _SeenSlots(item, visible[row], ancestors, row, past)
            block = Block(tiles, item, share, key_dim, value_offset, value_dim, width, cache_dtype)
            block.start(lambda head, i: q[row, first + head, i] * T.float32(scale))
            with T.serial(0, T.truncdiv(seen.count + (block.size - 1), block.size)) as b:
                block.add(T.min(seen.count - b * block.size, block.size),
                          lambda j, i: kv[seen.slot(b * block.size + j), kv_head, i])
            if v_up is None:
                block.mix(lambda head, i, value: T.buffer_store(out, value, [row, (first + head) * value_dim + i]))
            else:
                product, mix = Product(tiles, Variant(1), v_up, lane, part), shared((share, value_dim))
                barrier()  # everyone is done with the last block, whose memory this may be
                block.mix(lambda head, i, value: T.buffer_store(mix, value, [head, i]))
                barrier()
                with T.serial(0, share) as head:
                    project(product, v_up, (first + head,), [Row(mix, (head,))], lane,
                            lambda t, value, i: T.buffer_store(out, value, [row, (first + head) * v_dim + i]))
    return k.func


class _SeenSlots:
    """The slots a token sees, in order: the visible prefix, then the set bits of its mask. Contains a barrier."""

    def __init__(self, item: Any, prefix: Any, ancestors: T.Buffer, row: Any, past: Any) -> None:
        self._prefix, self._past = T.bind(prefix), past
        words = [T.bind(ancestors[row, i]) for i in range(2)]
        self._nodes = shared((MAX_TREE_NODES,), "int32")
        with when(item == 0):
            found = Local(1, 0, "int32")
            for index, word in enumerate(words):
                with T.serial(0, 32) as bit, when(T.bitwise_and(T.shift_right(word, bit), T.int32(1)) != 0):
                    T.buffer_store(self._nodes, index * 32 + bit, [found[0]])
                    found.add(0, T.int32(1))
        barrier()
        self.count = T.bind(self._prefix + T.popcount(words[0]) + T.popcount(words[1]))

    def slot(self, i: Any) -> Any:
        """The i-th slot seen."""
        node = self._nodes[T.max(i - self._prefix, 0)]
        return T.if_then_else(i < self._prefix, i, self._past + node)
