"""The compiled EAGLE draft against the golden and the PyTorch oracle, and the trees that grow from it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import MLA, write_random_checkpoint, write_random_draft
from compiled import nmse, same_bits

from blockffn_mlc.builder import build_artifact, make_plan
from blockffn_mlc.eagle_reference import EagleReference
from blockffn_mlc.errors import UserError
from blockffn_mlc.layers import READ
from blockffn_mlc.progress import Progress
from blockffn_mlc.reference import Reference
from blockffn_mlc.sources import open_model, with_draft
from runtime_py import Engine
from runtime_py.drafters.eagle import EagleDrafter
from runtime_py.tree import Tree, TreeShape
from schedules import q4
from schedules.layout import Q4_FORMATS, unpack_rows
from targets.cpu import cpu_target

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TARGET, DRAFT = GOLDEN / "gqa_block_linear", GOLDEN / "eagle_gqa"
WINDOW, CHUNK = 160, 24
HALF = 1e-7  # what rounding cached values to float16 may cost: the oracle does not round them


def build(model, draft, out, quantization):
    """An artifact with float32 activations and few token tiles, which compile fast and change no result."""
    target = cpu_target()
    target = replace(target, tiles=replace(target.tiles, q4_token_tiles=(1, 4)))
    source = with_draft(open_model(str(model)), draft)
    plan = make_plan(source.config, target, quantization, WINDOW, CHUNK, source.folder, "f32", source.draft)
    build_artifact(plan, source.weights, source.folder, source.identity, out, 1, Progress(quiet=True))
    return Engine.load(out)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return build(TARGET, DRAFT, tmp_path_factory.mktemp("eagle") / "gqa", "q0f32")


@pytest.fixture(scope="module")
def mla(tmp_path_factory):
    """A target with MLA and untied embeddings, and a draft of two layers that rotates wider heads and knows all
    tokens."""
    folder = tmp_path_factory.mktemp("mla")
    write_random_checkpoint(folder / "model", MLA)
    write_random_draft(folder / "draft", MLA, layers=2, bias=False)
    return folder


@pytest.fixture(scope="module")
def mla_q4(mla):
    return build(mla / "model", mla / "draft", mla / "q4", "q4f16_1")


@pytest.fixture(scope="module")
def mla_q0(mla):
    return build(mla / "model", mla / "draft", mla / "q0", "q0f32")


@pytest.fixture(scope="module")
def golden():
    with np.load(DRAFT / "expected.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def causal(library, ids, hidden, caches, start=0):
    """One draft pass over pairs at positions from ``start`` on, with the head for all of them."""
    rows = np.arange(len(ids), dtype=np.int32)
    return library.draft(np.array(ids, np.int32), hidden, start + rows, start + rows + 1,
                         np.zeros((len(ids), 2), np.int32), rows, start, 0, caches)


def in_chunks(library, ids, hidden, size):
    caches = library.new_draft_caches()
    parts = [causal(library, ids[start:start + size], hidden[start:start + size], caches, start)
             for start in range(0, len(ids), size)]
    return SimpleNamespace(**{name: np.concatenate([getattr(part, name) for part in parts])
                              for name in parts[0]._fields})


def states_of(engine, ids):
    return np.concatenate([output.hidden for output in engine.session().stream(ids)])


@pytest.mark.parametrize("size", [CHUNK, 7, 1])
def test_the_draft_equals_the_golden(engine, golden, size):
    ids = golden["ids"][0].tolist()
    hidden = states_of(engine, ids)
    assert nmse(hidden, golden["target_hidden"]) <= 1e-9
    drafted = in_chunks(engine.library, ids[1:], hidden[:-1], size)
    assert nmse(drafted.hidden, golden["draft_hidden"]) <= 1e-9
    assert nmse(drafted.logits, golden["draft_logits"]) <= 1e-9


def test_a_step_gives_the_states_of_a_chunk(engine, golden):
    ids = golden["ids"][0].tolist()
    caches, library = engine.library.new_caches(), engine.library
    expected = states_of(engine, ids)
    for position, token in enumerate(ids):
        _, hidden = library.step(token, position, caches)
        assert same_bits(hidden, expected[position:position + 1])


def test_the_most_likely_tokens_go_through_the_list(engine, golden):
    ids = golden["ids"][0].tolist()
    drafted = in_chunks(engine.library, ids[1:], states_of(engine, ids)[:-1], CHUNK)
    order = np.argsort(-drafted.logits, axis=-1, kind="stable")[:, :10]
    np.testing.assert_array_equal(drafted.tokens, golden["freq"][order])
    logits = torch.from_numpy(drafted.logits).double()
    expected = logits.log_softmax(-1).numpy()
    np.testing.assert_allclose(drafted.log_probs, np.take_along_axis(expected, order, -1), atol=2e-6)


def rounded(weight_format, tensors):
    """What a build keeps of tensors."""
    if weight_format not in Q4_FORMATS:
        return tensors
    return {name: torch.from_numpy(
        q4.dequantize(*q4.quantize(values.numpy(), weight_format)) if values.ndim == 2
        else values.numpy().astype("float16").astype("float32")) for name, values in tensors.items()}


def oracle(target, draft, weight_format):
    """The PyTorch draft of a target, with the weights of a build in ``weight_format``."""
    model = Reference.load(target)
    model.tensors = rounded(weight_format, {name: model.tensors[name] for name in (
        "model.embed_tokens.weight", "lm_head.weight")})
    reference = EagleReference.load(draft, model)
    reference.tensors = rounded(weight_format, reference.tensors)
    return reference


@pytest.mark.parametrize(("name", "weight_format", "tolerance"), [
    ("mla_q0", "float32", 1e-9), ("mla_q4", "q4f16_1", HALF)])
def test_a_draft_of_an_mla_model_equals_the_oracle(request, mla, name, weight_format, tolerance):
    engine = request.getfixturevalue(name)
    assert (engine.artifact.draft.layers, engine.artifact.draft.vocab_size) == (2, MLA.vocab_size)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, MLA.vocab_size, 40, np.int32)
    hidden = rng.standard_normal((40, MLA.hidden_size), np.float32)
    drafted = in_chunks(engine.library, ids, hidden, 9)
    reference = oracle(mla / "model", mla / "draft", weight_format)
    with torch.no_grad():
        expected, _ = reference.forward(torch.from_numpy(ids)[None], torch.from_numpy(hidden)[None])
        logits = reference.logits(expected)
    assert nmse(drafted.hidden, expected[0].numpy()) <= tolerance
    assert nmse(drafted.logits, logits[0].numpy()) <= tolerance
    np.testing.assert_array_equal(drafted.tokens, np.argsort(-drafted.logits, axis=-1, kind="stable")[:, :10])


@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1", "q4f32_1"])
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_rows_of_the_head_are_the_targets_bit_for_bit(mla, tmp_path, name, quantization):
    model, draft = (TARGET, DRAFT) if name == "tied" else (mla / "model", tmp_path / "draft")
    if name == "untied":
        tokens = np.random.default_rng(1).permutation(MLA.vocab_size)[:45]
        write_random_draft(draft, MLA, frequent=tokens)
    source = with_draft(open_model(str(model)), draft)
    plan = make_plan(source.config, cpu_target(), quantization, draft=source.draft)
    parameters = dict(plan.graph.parameters)
    head, whole = (parameters[key].attrs[READ](source.weights) for key in (
        "eagle.lm_head", "embed_tokens.weight" if name == "tied" else "lm_head.weight"))
    token_ids = parameters["eagle.token_ids"].attrs[READ](source.weights)
    assert tuple(token_ids) == source.draft.token_ids
    rows, width = (len(token_ids), source.config.vocab_size), source.config.hidden_size
    if head.dtype == np.uint32:
        (codes, scales), (all_codes, all_scales) = (
            q4.unpack(packed, count, width, quantization) for packed, count in zip((head, whole), rows))
        assert same_bits(codes, all_codes[token_ids]) and same_bits(scales, all_scales[token_ids])
    else:
        assert same_bits(*(np.ascontiguousarray(values) for values in (
            unpack_rows(head, rows[0]), unpack_rows(whole, rows[1])[token_ids])))


def test_an_artifact_without_a_draft_stays_as_it_was(engine):
    plan = make_plan(engine.artifact.config, cpu_target(), "q0f32")
    assert plan.graph.functions() == ["_metadata", "commit", "forward", "forward_dense"]
    assert "draft" not in plan.chat["blockffn"] and not any(name.startswith("eagle") for name, _ in
                                                             plan.graph.parameters)
    with pytest.raises(ValueError, match="no draft model"):
        EagleDrafter(replace(engine.artifact, draft=None), engine.library)


@pytest.mark.parametrize(("changes", "words"), [
    ({"top_k": 9}, ["'draft'", "'top_k': 10", "'top_k': 9"]), ({"layers": 0}, ["layers", "positive", "0"]),
    ({"cache_shape": [8, 2, 128]}, ["draft.cache_shape", "8 slots", str(WINDOW)]),
    ({"cache_dtype": "int8"}, ["draft.cache_dtype", "int8"]), (None, ["'draft'", "found None"])])
def test_a_description_that_does_not_fit_the_library_is_refused(engine, changes, words):
    where = engine.artifact.path / "mlc-chat-config.json"
    original = where.read_text()
    raw = json.loads(original)
    if changes is None:
        del raw["blockffn"]["draft"]
    else:
        raw["blockffn"]["draft"] |= changes
    where.write_text(json.dumps(raw))
    try:
        with pytest.raises(UserError) as caught:
            Engine.load(engine.artifact.path)
    finally:
        where.write_text(original)
    assert all(word in str(caught.value) for word in words), caught.value


def fresh_cache(engine, pairs, states):
    """A new cache with a row for every pair, and what follows the last."""
    caches = engine.library.new_draft_caches()
    for start in range(0, len(pairs), CHUNK):
        drafted = causal(engine.library, pairs[start:start + CHUNK], states[start:start + CHUNK], caches, start)
    return caches, drafted


def brute_force(engine, tokens, states, root, shape):
    """EAGLE-2 without a shortcut: each level's ``top_k`` best nodes are expanded, each node's path is computed as a
    plain sequence, and the best of all that were tried are sorted out at the end."""
    caches, drafted = fresh_cache(engine, [*tokens[1:], root], states)

    def children(score, path, given):  # ``given``: the states that go with the path's tokens
        return [(score + np.float64(log_prob), [*path, int(token)], [*given, drafted.hidden[-1]])
                for token, log_prob in zip(drafted.tokens[-1][:shape.top_k], drafted.log_probs[-1])]

    level = tried = children(0.0, [], [])
    for _ in range(1, shape.depth):
        best, level = sorted(level, key=lambda node: -node[0])[:shape.top_k], []
        for score, path, given in best:
            drafted = causal(engine.library, path, np.stack(given), caches, len(tokens))
            level = level + children(score, path, given)
        tried = tried + level
    kept = [path for _, path, _ in sorted(tried, key=lambda node: -node[0])][:shape.size - 1]
    place = {(): 0} | {tuple(path): node for node, path in enumerate(kept, 1)}
    return Tree([root, *(path[-1] for path in kept)], [-1, *(place[tuple(path[:-1])] for path in kept)])


def random_session(engine, rng, length):
    tokens = rng.integers(0, engine.artifact.config.vocab_size, length).tolist()
    return tokens, rng.standard_normal((length, engine.artifact.config.hidden_size), np.float32)


@pytest.mark.parametrize("shape", [(1, 3, 10), (2, 3, 10), (8, 5, 4), (32, 3, 10), (64, 7, 10), (64, 2, 1), (20, 20, 2),
                                   (30, 6, 3), (40, 8, 2), (64, 16, 4), (64, 0, 4), (64, 7, 30)], ids=str)
@pytest.mark.parametrize("name", ["engine", "mla_q4"])
def test_trees_equal_brute_force(request, name, shape):
    engine, rng, shape = request.getfixturevalue(name), np.random.default_rng(3), TreeShape(*shape)
    tokens, states = random_session(engine, rng, 30)
    drafter = EagleDrafter(engine.artifact, engine.library)
    drafter.extend(tokens, states)
    tree = drafter.draft(5, shape)
    if shape.size == 1 or shape.depth == 0:
        assert tree == Tree([5], [-1])
    else:
        known = replace(shape, top_k=min(shape.top_k, engine.artifact.draft.top_k))
        assert tree == brute_force(engine, tokens, states, 5, known)


def test_the_cache_stays_that_of_a_fresh_drafter(engine):
    """1,000 steps: trees drafted, paths accepted or not, tokens decoded without a draft, roots that were not what
    followed, rollbacks. Then and when, every row has the bits of one computed from the session alone."""
    rng, library = np.random.default_rng(4), engine.library
    vocabulary, width = engine.artifact.config.vocab_size, engine.artifact.config.hidden_size
    drafter = EagleDrafter(engine.artifact, library)
    tokens, states = [], np.empty((0, width), np.float32)
    drafts = 0
    for step in range(1000):
        if len(tokens) > WINDOW - 20 or rng.random() < 0.05:
            length = int(rng.integers(0, len(tokens) + 1))
            drafter.rollback(length)
            tokens, states = tokens[:length], states[:length]
        root = int(rng.integers(0, 4))  # few tokens: the last root returns at places where its row is not the cache's
        tree = None
        if rng.random() < 0.8:
            shape = TreeShape(int(rng.integers(1, 20)), int(rng.integers(0, 5)), int(rng.integers(1, 11)))
            tree = drafter.draft(root, shape)
            drafts += len(tree) > 1
        if step % 10 == 9 and tree is not None and len(tree) > 1:
            fresh, _ = fresh_cache(engine, [*tokens[1:], root], states)
            for found, expected in zip(drafter._caches, fresh):
                rows = slice(0, len(tokens))
                assert same_bits(np.from_dlpack(found)[rows], np.from_dlpack(expected)[rows]), step
            other = EagleDrafter(engine.artifact, library)
            other.extend(tokens, states)
            assert other.draft(root, shape) == tree
        accepted = [int(rng.integers(0, vocabulary)) if rng.random() < 0.1 else root]
        accepted += rng.integers(0, vocabulary, int(rng.integers(0, 6))).tolist()
        hidden = rng.standard_normal((len(accepted), width), np.float32)
        drafter.extend(accepted, hidden)
        tokens, states = tokens + accepted, np.concatenate([states, hidden])
    assert drafts > 500


def test_a_row_of_forgotten_tokens_is_not_taken_for_another(engine):
    rng = np.random.default_rng(6)
    tokens, states = random_session(engine, rng, 14)
    drafter, other = (EagleDrafter(engine.artifact, engine.library) for _ in range(2))
    shape = TreeShape(20, 4, 4)
    drafter.extend(tokens[:12], states[:12])
    drafter.draft(8, shape)
    drafter.rollback(11)
    drafter.extend([8, *tokens[12:]], states[11:])  # behind 11 tokens stands the root that was drafted behind 12
    other.extend([*tokens[:11], 8, *tokens[12:]], states)
    assert drafter.draft(9, shape) == other.draft(9, shape)
    assert all(same_bits(np.from_dlpack(one)[:14], np.from_dlpack(two)[:14])
               for one, two in zip(drafter._caches, other._caches))


def test_trees_stay_inside_the_window(engine):
    rng = np.random.default_rng(5)
    for length, depth in ((WINDOW - 4, 3), (WINDOW - 3, 2), (WINDOW - 2, 1), (WINDOW - 1, 0)):
        tokens, states = random_session(engine, rng, length)
        drafter = EagleDrafter(engine.artifact, engine.library)
        drafter.extend(tokens, states)
        tree = drafter.draft(5, TreeShape(30, 8, 2))
        levels = [0]
        for parent in tree.parents[1:]:
            levels.append(levels[parent] + 1)
        assert max(levels) == depth


def test_a_session_without_tokens_has_no_states_to_go_on_from(engine):
    drafter = EagleDrafter(engine.artifact, engine.library)
    assert drafter.draft(5, TreeShape(8, 3, 4)) == Tree([5], [-1])
    with pytest.raises(ValueError, match="hidden states"):
        drafter.extend([5], None)
