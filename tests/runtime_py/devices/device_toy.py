"""A toy model as a library for devices, behind the interface of docs/artifact.md, and the same in numpy.

Every layer adds to a token's vector the mean of the cached vectors that it sees; router scores are its first
elements.
"""

import json

import numpy as np
import tvm
import tvm.relax.frontend.nn as nn
from toy import CHUNK, MODEL, WINDOW, write_artifact
from tvm import relax
from tvm.relax.frontend.nn import op, spec
from tvm.script import tirx as T

from blockffn_mlc.compile import METADATA, Graph, compile_graph
from blockffn_mlc.layers import call
from schedules.gpu import argmax
from targets import find_target

WIDTH, VOCAB, EXPERTS, LAYERS = 32, MODEL["vocab_size"], MODEL["num_experts"], MODEL["num_hidden_layers"]
SLOTS = WINDOW + 64


@T.prim_func(private=True, s_tir=True)
def embed(ids: T.handle, table: T.Buffer((VOCAB, WIDTH), "float32"), result: T.handle):
    n = T.int64()
    tokens = T.match_buffer(ids, (n,), "int32")
    rows = T.match_buffer(result, (n, WIDTH), "float32")
    for t in T.thread_binding(n, thread="blockIdx.x"):
        for i in T.thread_binding(WIDTH, thread="threadIdx.x"):
            rows[t, i] = table[tokens[t], i]


@T.prim_func(private=True, s_tir=True)
def append(cache: T.Buffer((SLOTS, 1, WIDTH), "float32"), x: T.handle, past: T.int64):
    n = T.int64()
    rows = T.match_buffer(x, (n, WIDTH), "float32")
    for t in T.thread_binding(n, thread="blockIdx.x"):
        for i in T.thread_binding(WIDTH, thread="threadIdx.x"):
            cache[past + t, 0, i] = rows[t, i]


@T.prim_func(private=True, s_tir=True)
def mix(x: T.handle, cache: T.Buffer((SLOTS, 1, WIDTH), "float32"), visible: T.handle, ancestors: T.handle,
        past: T.int64, result: T.handle):
    n = T.int64()
    rows = T.match_buffer(x, (n, WIDTH), "float32")
    seen = T.match_buffer(visible, (n,), "int32")
    masks = T.match_buffer(ancestors, (n, 2), "int32")
    mixed = T.match_buffer(result, (n, WIDTH), "float32")
    for t in T.thread_binding(n, thread="blockIdx.x"):
        for i in T.thread_binding(WIDTH, thread="threadIdx.x"):
            total = T.alloc_buffer((2,), "float32", scope="local")
            total[0] = T.float32(0)
            total[1] = T.float32(0)
            for slot in T.serial(seen[t]):
                total[0] = total[0] + cache[slot, 0, i]
                total[1] = total[1] + T.float32(1)
            for bit in T.serial(64):
                if T.bitwise_and(T.shift_right(masks[t, bit // 32], bit % 32), 1) == 1:
                    total[0] = total[0] + cache[past + bit, 0, i]
                    total[1] = total[1] + T.float32(1)
            mixed[t, i] = rows[t, i] + total[0] / total[1]


@T.prim_func(private=True, s_tir=True)
def first(x: T.handle, result: T.handle):
    n = T.int64()
    rows = T.match_buffer(x, (n, WIDTH), "float32")
    scores = T.match_buffer(result, (n, EXPERTS), "float32")
    for t in T.thread_binding(n, thread="blockIdx.x"):
        for e in T.thread_binding(EXPERTS, thread="threadIdx.x"):
            scores[t, e] = T.max(rows[t, e], T.float32(0))


@T.prim_func(private=True, s_tir=True)
def head(x: T.handle, rows: T.handle, table: T.Buffer((VOCAB, WIDTH), "float32"), result: T.handle):
    n, m = T.int64(), T.int64()
    hidden = T.match_buffer(x, (n, WIDTH), "float32")
    wanted = T.match_buffer(rows, (m,), "int32")
    logits = T.match_buffer(result, (m, VOCAB), "float32")
    for r in T.thread_binding(m, thread="blockIdx.x"):
        for lane in T.thread_binding(64, thread="threadIdx.x"):
            for block in T.serial((VOCAB + 63) // 64):
                if block * 64 + lane < VOCAB:
                    logits[r, block * 64 + lane] = T.float32(0)
                    for i in T.serial(WIDTH):
                        logits[r, block * 64 + lane] += hidden[wanted[r], i] * table[block * 64 + lane, i]


@T.prim_func(private=True, s_tir=True)
def move(cache: T.Buffer((SLOTS, 1, WIDTH), "float32"), idx: T.handle, past: T.int64):
    k = T.int64()
    rows = T.match_buffer(idx, (k,), "int32")
    for _ in T.thread_binding(1, thread="blockIdx.x"):
        for i in T.thread_binding(WIDTH, thread="threadIdx.x"):
            for row in T.serial(k):
                cache[past + row, 0, i] = cache[past + T.Cast("int64", rows[row]), 0, i]


class ToyModel(nn.Module):
    def __init__(self, tiles):
        self.tiles = tiles
        self.embedding = nn.Parameter((VOCAB, WIDTH), "float32")
        self.lm_head = nn.Parameter((VOCAB, WIDTH), "float32")

    def forward(self, ids, positions, visible, ancestors, rows, past, caches):
        n = ids.shape[0]
        x, scores = call(embed, "embed", [ids, self.embedding], ((n, WIDTH), "float32")), []
        for cache in caches:
            cache = op.tensor_ir_inplace_op(append, "append", [cache, x, past], 0, _like(cache.shape))
            x = call(mix, "mix", [x, cache, visible, ancestors, past], ((n, WIDTH), "float32"))
            scores.append(call(first, "first", [x], ((n, EXPERTS), "float32")))
        return call(head, "head", [x, rows, self.lm_head], ((rows.shape[0], VOCAB), "float32")), tuple(scores)

    forward_dense = forward

    def commit(self, idx, past, caches):
        return tuple(op.tensor_ir_inplace_op(move, "move", [cache, idx, past], 0, _like(cache.shape))
                     for cache in caches)

    def argmax(self, logits):
        return call(argmax(self.tiles, VOCAB), "argmax", [logits], ((logits.shape[0],), "int32"),
                    ((logits.shape[0],), "float32"))


def write_device_artifact(folder, kind):
    """An artifact of the toy model for target ``kind``, as ``toy.write_artifact`` writes it but for its library and
    weights. Returns these."""
    target = find_target(kind)
    write_artifact(folder)
    per_token, cache = spec.Tensor(["n"], "int32"), spec.Tensor((SLOTS, 1, WIDTH), "float32")
    packed, bare = ({"$": {"param_mode": mode, "effect_mode": "none"}} for mode in ("packed", "none"))
    forward = {"ids": per_token, "positions": per_token, "visible": per_token,
               "ancestors": spec.Tensor(["n", 2], "int32"), "rows": spec.Tensor(["m"], "int32"), "past": int,
               "caches": [cache] * LAYERS} | packed
    module, parameters = ToyModel(target.tiles).export_tvm(spec={
        "forward": forward, "forward_dense": dict(forward),
        "commit": {"idx": spec.Tensor(["k"], "int32"), "past": int, "caches": [cache] * LAYERS} | bare,
        "argmax": {"logits": spec.Tensor(["m", VOCAB], "float32")} | bare})
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(VOCAB, WIDTH)).astype("f4") for name, _ in parameters}
    metadata = {"context_window_size": WINDOW, "prefill_chunk_size": CHUNK,
                "params": [{"name": name, "shape": list(weights[name].shape), "dtype": "float32"} for name in weights]}
    module[METADATA] = _constant(json.dumps(metadata))
    executable = compile_graph(Graph(module, parameters, 0), target.tvm_target)
    target.export(executable, str(folder / "lib" / "toy.so"), target.forms[0].link)
    _write_weights(folder, weights)
    path = folder / "mlc-chat-config.json"
    path.write_text(path.read_text().replace('"target": "cpu"', f'"target": "{kind}"'))
    return weights


def expected_logits(weights, ids):
    """Logits of every token of a plain sequence, float64 [n, V]."""
    x = weights["embedding"][ids].astype(np.float64)
    for _ in range(LAYERS):
        x = x + np.cumsum(x, axis=0) / np.arange(1, len(x) + 1)[:, None]
    return x @ weights["lm_head"].T.astype(np.float64)


def _constant(text):
    builder = relax.BlockBuilder()
    with builder.function(METADATA, params=[]):
        builder.emit_func_output(tvm.ir.StringImm(text))
    return builder.get()[METADATA]


def _write_weights(folder, weights):
    records, data = [], b""
    for name, weight in weights.items():
        records.append({"name": name, "shape": list(weight.shape), "dtype": weight.dtype.name, "format": "raw",
                        "nbytes": weight.nbytes, "byteOffset": len(data)})
        data += weight.tobytes()
    (folder / "params_shard_0.bin").write_bytes(data)
    shard = {"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": len(data), "records": records}
    (folder / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": [shard]}))


def _like(shape):
    return nn.Tensor.placeholder(shape, "float32")
