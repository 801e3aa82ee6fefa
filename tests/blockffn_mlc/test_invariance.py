"""A position's logits and router scores have the same bits however they are computed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiled import ancestor_words, depths, golden_model, poison, same_bits
from machine import can_run

TOKENS = 100
TESTS = Path(__file__).parents[1]
MODELS = [("mla_block", "q0f32", "f32"), ("mla_block", "q0f16", "f32"), ("mla_block", "q4f16_1", "int8"),
          ("mla_block", "q4f32_1", "int8x2"), ("gqa_block_linear", "q0f32", "f32"),
          ("gqa_block_linear", "q0f16", "f32"), ("gqa_block_linear", "q4f16_1", "int8")]


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def model(request):
    return golden_model(*request.param)


@pytest.fixture(scope="module")
def ids(model):
    return np.random.default_rng(1).integers(0, model.vocab, TOKENS)


@pytest.fixture(scope="module")
def alone(model, ids):
    """Every token on its own: logits, scores, caches."""
    return model.chunks(ids, [1])


def random_parents(rng, nodes):
    """A tree in topological order: a chain, a star, several roots or anything between."""
    style = rng.integers(4)
    if style == 0:
        return list(range(-1, nodes - 1))
    if style == 1:
        return [-1] + [0] * (nodes - 1)
    low = -1 if style == 2 else 0
    return [-1] + [int(rng.integers(max(low, i - 8), i)) for i in range(1, nodes)]


def path_to(parents, node):
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def same_rows(caches, others, rows):
    return all(same_bits(a[:rows], b[:rows]) for a, b in zip(caches, others))


@pytest.mark.parametrize("sizes", [[TOKENS], [7], [2], [31, 1, 32], [33], [63, 37], [64], [65], [1, 99]], ids=str)
def test_chunk_sizes(model, ids, alone, sizes):
    logits, scores, caches = model.chunks(ids, sizes)
    assert same_bits(logits, alone[0]) and same_bits(scores, alone[1])
    assert same_rows(caches, alone[2], TOKENS)


def test_random_chunk_sizes(model, ids, alone):
    rng = np.random.default_rng(2)
    for _ in range(20):
        sizes = list(rng.integers(1, rng.choice([4, 20, 70]), 60)) + [1]
        logits, scores, caches = model.chunks(ids, sizes)
        assert same_bits(logits, alone[0]) and same_bits(scores, alone[1]), sizes
        assert same_rows(caches, alone[2], TOKENS), sizes


def test_tree_nodes(model, ids, alone):
    """Every node of random trees equals its token decoded alone behind the same path; between the nodes, rows of
    the branch just left are overwritten, so that this is rollback as well."""
    rng = np.random.default_rng(3)
    for nodes in (1, 2, 5, 9, 33, 63, 64, 64):
        past = int(rng.integers(0, TOKENS))
        parents = random_parents(rng, nodes)
        tokens = rng.integers(0, model.vocab, nodes)
        _, _, caches = model.chunks(ids[:past], [32]) if past else (0, 0, model.new_caches())
        decoded = [cache.copy() for cache in caches]
        logits, scores = model.tree(tokens, parents, past, caches)
        depth = depths(parents)

        def visit(node):
            one = model.chunk(tokens[[node]], past + depth[node], aligned)
            assert same_bits(one[0][0], logits[node]) and same_bits(one[1][:, 0], scores[:, node]), (nodes, node)
            for child in range(node + 1, nodes):
                if parents[child] == node:
                    visit(child)

        aligned = model.new_caches()
        for cache, copy in zip(aligned, decoded):
            cache[...] = copy
        for root in (node for node in range(nodes) if parents[node] < 0):
            visit(root)


def test_commit_then_continue(model, ids):
    """After any accepted path, cache rows and further tokens equal those of the plain sequence."""
    rng = np.random.default_rng(4)
    for nodes in (1, 4, 17, 40, 64):
        past, parents = int(rng.integers(0, 60)), random_parents(rng, nodes)
        tokens = rng.integers(0, model.vocab, nodes)
        path = path_to(parents, int(rng.integers(0, nodes)))
        later = rng.integers(0, model.vocab, 20)
        sequence = np.concatenate([ids[:past], tokens[path], later])

        caches = model.new_caches()
        if past:
            model.chunks(ids[:past], [23], caches=caches)
        model.tree(tokens, parents, past, caches)
        model.commit(path, past, caches)
        kept = past + len(path)
        logits, scores, _ = model.chunks(later, [3, 1, 9], past=kept, caches=caches)
        fresh = model.chunks(sequence, [19])
        assert same_bits(logits, fresh[0][kept:]) and same_bits(scores, fresh[1][:, kept:])
        assert same_rows(caches, fresh[2], len(sequence))


def test_rollback(model, ids, alone):
    """Rejected drafts, trees or chunks, leave no trace once their rows are overwritten."""
    rng = np.random.default_rng(5)
    caches, done = model.new_caches(), 0
    while done < TOKENS:
        nodes = int(rng.integers(1, 65))
        draft = rng.integers(0, model.vocab, nodes)
        if rng.integers(2):
            model.tree(draft, random_parents(rng, nodes), done, caches)
        else:
            model.chunk(draft, done, caches)
        size = int(rng.integers(1, 12))
        logits, scores = model.chunk(ids[done:done + size], done, caches)
        assert same_bits(logits, alone[0][done:done + size])
        assert same_bits(scores, np.ascontiguousarray(alone[1][:, done:done + size]))
        done += size
    assert same_rows(caches, alone[2], TOKENS)


@pytest.mark.parametrize("fill", [0.0, 6e4, np.inf, np.nan])
def test_rows_beyond_the_visible_ones_do_not_matter(model, ids, alone, fill):
    caches = model.new_caches(fill)
    logits, _ = model.chunk(ids[:40], 0, caches)
    assert same_bits(logits, alone[0][:40])
    for cache in caches:
        cache[40:] = fill
    tree, _ = model.tree(ids[40:44], [-1, 0, 1, 2], 40, caches)
    assert same_bits(tree, alone[0][40:44])


def test_rows_asked_for(model, ids, alone):
    """Any selection of rows, in any order and repeated, gives each row's own bits."""
    steps = np.arange(70)
    for rows in ([69], [0], [3, 3, 50, 0], steps[::-1], np.random.default_rng(6).integers(0, 70, 33)):
        logits, _ = model.forward(ids[:70], steps, steps + 1, np.zeros((70, 2)), rows, 0, model.new_caches())
        assert same_bits(logits, alone[0][np.asarray(rows)])


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 64, 65, 100])
def test_sparse_equals_dense(model, ids, tokens):
    sparse_caches, dense_caches = model.new_caches(), model.new_caches()
    sparse = model.chunk(ids[:tokens], 0, sparse_caches)
    dense = model.chunk(ids[:tokens], 0, dense_caches, dense=True)
    assert same_bits(sparse[0], dense[0]) and same_bits(sparse[1], dense[1])
    assert same_rows(sparse_caches, dense_caches, tokens)
    nodes = min(tokens, 64)
    tree = [model.tree(ids[:nodes], random_parents(np.random.default_rng(8), nodes), tokens, caches, dense)
            for caches, dense in ((sparse_caches, False), (dense_caches, True))]
    assert same_bits(tree[0][0], tree[1][0]) and same_bits(tree[0][1], tree[1][1])


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_weights_of_inactive_experts_are_never_read(model, ids, tokens):
    """NaN in the weights of every expert that no token uses changes nothing; in those of a used one, everything."""
    start = 30
    clean = model.chunk(ids[start:start + tokens], 0, model.new_caches())
    active = (clean[1] != 0).any(axis=1)
    assert not active.all()
    experts = [model.weights[f"layers.{layer}.mlp.{kind}_proj"] for layer in range(model.layers)
               for kind in ("up", "down")]
    kept = [weight.copy() for weight in experts]
    try:
        for i, weight in enumerate(experts):
            poison(weight, ~active[i // 2])
        poisoned = model.chunk(ids[start:start + tokens], 0, model.new_caches())
        assert same_bits(poisoned[0], clean[0]) and same_bits(poisoned[1], clean[1])
        for i, weight in enumerate(experts):
            if active[i // 2].any():
                poison(weight, np.flatnonzero(active[i // 2])[0])
                assert np.isnan(model.chunk(ids[start:start + tokens], 0, model.new_caches())[0]).any()
                weight[...] = kept[i]
                poison(weight, ~active[i // 2])
    finally:
        for weight, values in zip(experts, kept):
            weight[...] = values


def battery(model):
    """Logits, scores and caches of chunks and a tree, as one list of arrays."""
    rng = np.random.default_rng(9)
    ids = rng.integers(0, model.vocab, TOKENS)
    logits, scores, caches = model.chunks(ids, [1, 2, 30, 65, 1])
    parents = random_parents(rng, 64)
    tree = model.tree(rng.integers(0, model.vocab, 64), parents, TOKENS, caches)
    model.commit(path_to(parents, 63), TOKENS, caches)
    dense = model.chunk(ids[:33], 0, model.new_caches(), dense=True)
    return [logits, scores, *tree, *dense, *caches]


_CHILD = """
import os, sys
import numpy as np
from compiled import Compiled
from test_invariance import battery
out, *folders = sys.argv[1:]
arrays = [array for folder in folders for array in battery(Compiled(folder))]
threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
np.savez(out, threads, *arrays)
"""


def test_thread_counts(tmp_path):
    models = [golden_model(*key) for key in MODELS if can_run(key[2])]
    expected, running = [array for model in models for array in battery(model)], []
    for threads in (1, 2, 3):
        out = tmp_path / f"{threads}.npz"
        path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "blockffn_mlc")))
        # Without binding, a machine with fewer cores runs them as well.
        env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": str(threads),
                            "TVM_BIND_THREADS": "0"}
        subprocess.run([sys.executable, "-c", _CHILD, str(out), *(str(model.folder) for model in models)], env=env,
                       check=True)
        seen, *arrays = np.load(out).values()
        running.append(int(seen))
        assert len(arrays) == len(expected)
        assert all(same_bits(a, b) for a, b in zip(arrays, expected)), f"{threads} threads"
    assert running[0] == 0 or running[0] < running[1] < running[2], "the thread count had no effect"


def test_helpers():
    """Masks and depths of a small tree, by hand."""
    parents = [-1, 0, 0, 2, -1]
    assert depths(parents).tolist() == [0, 1, 1, 2, 0]
    assert ancestor_words(parents).tolist() == [[1, 0], [3, 0], [5, 0], [13, 0], [16, 0]]
    assert ancestor_words(range(-1, 63))[63].tolist() == [-1, -1]
    assert path_to(parents, 3) == [0, 2, 3]
