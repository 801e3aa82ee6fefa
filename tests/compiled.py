"""Models compiled for this machine, called with numpy arrays; and what the PyTorch reference says of them."""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
import tvm
import tvm_ffi
from coded_reference import reference_for
from machine import few_token_tiles, skip_unless_it_can_run
from tvm import relax

from blockffn_mlc.attention import cache_shape
from blockffn_mlc.builder import make_plan
from blockffn_mlc.checkpoint import open_checkpoint
from blockffn_mlc.compile import compile_graph
from blockffn_mlc.layers import READ
from targets.cpu import cpu_target

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_NAMES = ("mla_block", "gqa_block_linear")
SLOTS = 192
MAX_CHUNK = 130
_LIBRARY, _WEIGHTS, _FACTS = "model.so", "weights.npz", "facts.json"
_folders = []  # temporary folders, deleted when the process ends


def compile_model(source, quantization, activations="f32", slots=SLOTS):
    """Compile ``source`` (an opened checkpoint or a RandomCheckpoint) with a cache of ``slots``."""
    plan = make_plan(source.config, few_token_tiles(cpu_target()), quantization, slots, MAX_CHUNK,
                     activation_format=activations)
    _folders.append(tempfile.TemporaryDirectory(prefix="blockffn-test-"))
    folder = Path(_folders[-1].name)
    compile_graph(plan.graph, plan.target.tvm_target).export_library(str(folder / _LIBRARY))
    np.savez(folder / _WEIGHTS, **{name: parameter.attrs[READ](source) for name, parameter in plan.graph.parameters})
    (folder / _FACTS).write_text(json.dumps({
        "layers": source.config.num_hidden_layers, "experts": source.config.num_experts,
        "vocab": source.config.vocab_size, "cache": [cache_shape(plan.build), plan.build.quantization.cache_dtype]}))
    return Compiled(folder)


def golden_model(name, quantization="q0f32", activations="f32"):
    """A golden checkpoint compiled, once per process. Skips what this machine has no instruction for."""
    skip_unless_it_can_run(activations)
    return _golden_model(name, quantization, activations)


@cache
def _golden_model(name, quantization, activations):
    return compile_model(open_checkpoint(GOLDEN / name), quantization, activations)


def golden_expected(name):
    """ids [T], logits [T, V], router_scores [L, T, E], last_hidden [T, H] of the original implementation."""
    expected = dict(np.load(GOLDEN / name / "expected.npz"))
    return expected | {"ids": expected["ids"][0]}


@torch.no_grad()
def oracle(source, ids, dtype="float32", reference=None):
    """Reference logits [T, V] and router scores [L, T, E], with weights and cached values rounded to ``dtype``, or
    what another ``reference`` rounds."""
    tensors = {name: torch.from_numpy(source.read(name).astype(dtype).astype("float32")) for name in source.expected}
    output = (reference or reference_for("f32", dtype))(source.config, tensors).forward(torch.as_tensor(ids)[None])
    return output.logits[0].numpy(), output.router_scores[:, 0].numpy()


def nmse(actual, expected):
    """sum (actual-expected)^2 / sum expected^2 in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return ((actual - expected) ** 2).sum() / (expected**2).sum()


def same_bits(a, b):
    """Equal to the last bit; NaN equals NaN, -0.0 differs from 0.0."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def poison(weight, index):
    """Make the weights at ``index`` NaN, in any format: 4-bit ones by their scales."""
    weight[index] = np.nan if weight.dtype.kind == "f" else 0xFFFDFFFD


def ancestor_words(parents):
    """Masks int32 [n, 2] of a tree given as the index of each node's parent, -1 for a root."""
    masks = []
    for node, parent in enumerate(parents):
        masks.append(1 << node | (masks[parent] if parent >= 0 else 0))
    return np.array(masks, np.uint64).view(np.int32).reshape(-1, 2)


def depths(parents):
    """Depth of every node of a tree, 0 for a root."""
    found = []
    for parent in parents:
        found.append(found[parent] + 1 if parent >= 0 else 0)
    return np.array(found, np.int32)


def tree_around(rng, path, distractors, vocab):
    """Token ids and parents of a tree that holds ``path`` and random nodes, and where the path went."""
    ids = [*path, *rng.integers(0, vocab, distractors)]
    parent = [i - 1 for i in range(len(path))]
    parent += [int(rng.integers(-1, i)) for i in range(len(path), len(ids))]
    place = {-1: -1}  # node -> position in the order chosen
    while len(place) <= len(ids):
        ready = [i for i in range(len(ids)) if i not in place and parent[i] in place]
        place[int(rng.choice(ready))] = len(place) - 1
    order = list(place)[1:]
    return [ids[i] for i in order], [place[parent[i]] for i in order], [place[i] for i in range(len(path))]


class Compiled:
    """A library and its weights in ``folder``. ``weights``: name -> array, used in place by every call."""

    def __init__(self, folder):
        self.folder = Path(folder)
        facts = json.loads((self.folder / _FACTS).read_text())
        self.layers, self.experts, self.vocab = facts["layers"], facts["experts"], facts["vocab"]
        self.cache_shape, self.cache_dtype = facts["cache"]
        self._vm = relax.VirtualMachine(tvm.runtime.load_module(str(self.folder / _LIBRARY)), tvm.cpu())
        stored = np.load(self.folder / _WEIGHTS)
        names = [parameter["name"] for parameter in json.loads(self._vm["_metadata"]())["params"]]
        self.weights = {name: _aligned(stored[name]) for name in names}
        self._params = tvm_ffi.convert([_tensor(weight) for weight in self.weights.values()])

    def new_caches(self, fill=np.nan):
        """One array per layer. The default fill makes a read of a row that was never written visible."""
        return [_aligned(np.full(self.cache_shape, fill, self.cache_dtype)) for _ in range(self.layers)]

    def forward(self, ids, positions, visible, ancestors, rows, past, caches, dense=False):
        """See docs/artifact.md. Returns logits [m, V] and scores [L, n, E]; writes ``caches``."""
        arrays = [_tensor(_aligned(np.asarray(a, np.int32))) for a in (ids, positions, visible, ancestors, rows)]
        logits, scores = self._vm["forward_dense" if dense else "forward"](
            *arrays, tvm_ffi.Shape([past]), tvm_ffi.convert([_tensor(cache) for cache in caches]), self._params)
        return np.array(logits.numpy()), np.stack([score.numpy() for score in scores])

    def chunk(self, ids, past, caches, dense=False):
        """Causal pass over ``ids`` behind ``past`` cached tokens, logits of every token."""
        steps = np.arange(len(ids))
        return self.forward(ids, past + steps, past + steps + 1, np.zeros((len(ids), 2)), steps, past, caches, dense)

    def chunks(self, ids, sizes, past=0, caches=None):
        """``chunk`` after chunk of ``sizes``, the last repeated. Returns logits [T, V], scores [L, T, E], caches."""
        caches = self.new_caches() if caches is None else caches
        sizes, results, start = list(sizes), [], 0
        while start < len(ids):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            results.append(self.chunk(ids[start:start + size], past + start, caches))
            start += size
        logits, scores = zip(*results)
        return np.concatenate(logits), np.concatenate(scores, axis=1), caches

    def tree(self, ids, parents, past, caches, dense=False):
        """Pass over the nodes of a tree, logits of every node."""
        visible = np.full(len(ids), past)
        return self.forward(ids, past + depths(parents), visible, ancestor_words(parents), np.arange(len(ids)), past,
                            caches, dense)

    def commit(self, idx, past, caches):
        """Move cache row past + idx[i] to past + i in every layer."""
        self._vm["commit"](_tensor(_aligned(np.asarray(idx, np.int32))), tvm_ffi.Shape([past]),
                           tvm_ffi.convert([_tensor(cache) for cache in caches]))


def _aligned(array):
    """A copy whose memory starts at a multiple of 64 bytes."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _tensor(array):
    return tvm_ffi.from_dlpack(array, require_alignment=64, require_contiguous=True)
