"""The compiled EAGLE draft against the golden and the PyTorch oracle."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import MLA, write_random_draft
from compiled import nmse, same_bits
from eagle_models import CHUNK, DRAFT, TARGET, WINDOW, causal, gqa_engine, mla_checkpoint, mla_engine

from blockffn_mlc.builder import make_plan
from blockffn_mlc.eagle_reference import EagleReference
from blockffn_mlc.errors import UserError
from blockffn_mlc.layers import READ
from blockffn_mlc.reference import Reference
from blockffn_mlc.sources import open_model, with_draft
from runtime_py import Engine
from schedules import q4
from schedules.layout import Q4_FORMATS, unpack_rows
from targets.cpu import cpu_target

HALF = 1e-7  # what rounding cached values to float16 may cost: the oracle does not round them


@pytest.fixture
def engine():
    return gqa_engine()


@pytest.fixture(scope="module")
def golden():
    with np.load(DRAFT / "expected.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


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
        assert same_bits(np.asarray(hidden), expected[position:position + 1])


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


@pytest.mark.parametrize(("quantization", "weight_format", "tolerance"), [
    ("q0f32", "float32", 1e-9), ("q4f16_1", "q4f16_1", HALF)])
def test_a_draft_of_an_mla_model_equals_the_oracle(quantization, weight_format, tolerance):
    engine, mla = mla_engine(quantization), mla_checkpoint()
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
def test_rows_of_the_head_are_the_targets_bit_for_bit(tmp_path, name, quantization):
    mla = mla_checkpoint()
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
