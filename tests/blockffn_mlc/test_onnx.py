"""The model as ONNX computes what the original implementation, the PyTorch reference and our artifacts compute: under
ONNX Runtime, and brought back through Relax's ONNX front end."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import tvm
from checkpoints import GQA, MLA, VARIANTS
from compiled import GOLDEN, GOLDEN_NAMES, compile_model, golden_expected, nmse, oracle
from tokenizers import Tokenizer
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from blockffn_mlc.checkpoint import open_checkpoint
from blockffn_mlc.onnx.export import plan_onnx, write_onnx
from blockffn_mlc.onnx.session import OnnxSession
from blockffn_mlc.progress import Progress
from blockffn_mlc.random_model import RandomCheckpoint
from blockffn_mlc.sources import DEMO_FOLDER
from targets.cpu import cpu_target

HALF = 1e-7  # as for compiled models, see test_golden.py
HALF_TO_ORIGINAL = 1e-4


def export(source, quantization, out):
    """Write ``source`` (an opened checkpoint or a RandomCheckpoint) to the folder ``out``."""
    write_onnx(plan_onnx(source.config, quantization), source.config, source, None, out, Progress(quiet=True))
    return out


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return {(name, quantization): export(open_checkpoint(GOLDEN / name), quantization, folder / name / quantization)
            for name in GOLDEN_NAMES for quantization in ("q0f32", "q0f16")}


def in_chunks(session, ids, lengths):
    """Logits [T, V] and router scores [L, T, E], the cache continued from chunk to chunk; the rest is the last."""
    results = [session.forward(part[None]) for part in np.split(np.asarray(ids), np.cumsum(lengths)) if len(part)]
    logits, scores = zip(*results)
    return np.concatenate(logits, axis=1)[0], np.concatenate(scores, axis=2)[:, 0]


@pytest.mark.parametrize("lengths", [[], [1, 1, 5], [40]], ids=str)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_float32_equals_the_original(goldens, name, lengths):
    expected = golden_expected(name)
    logits, scores = in_chunks(OnnxSession(goldens[name, "q0f32"]), expected["ids"], lengths)
    assert nmse(logits, expected["logits"]) <= 1e-9
    assert nmse(scores, expected["router_scores"]) <= 1e-9
    assert np.array_equal(scores != 0, expected["router_scores"] != 0)


@pytest.mark.parametrize("lengths", [[], [1, 1, 5]], ids=str)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_float16_equals_the_oracle_in_float16(goldens, name, lengths):
    expected = golden_expected(name)
    oracle_logits, oracle_scores = oracle(open_checkpoint(GOLDEN / name), expected["ids"], "float16")
    session = OnnxSession(goldens[name, "q0f16"])
    logits, scores = in_chunks(session, expected["ids"], lengths)
    assert {rows.dtype for rows in session.cache.values()} == {np.dtype("float16")}
    assert nmse(logits, oracle_logits) <= HALF and nmse(scores, oracle_scores) <= HALF
    assert nmse(logits, expected["logits"]) <= HALF_TO_ORIGINAL


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_cache_holds_what_one_pass_would_have_put_there(goldens, name):
    ids = golden_expected(name)["ids"]
    one, many = (OnnxSession(goldens[name, "q0f32"]) for _ in range(2))
    in_chunks(one, ids, [])
    in_chunks(many, ids, [3, 1, 7])
    assert one.cache.keys() == many.cache.keys()
    for kind, rows in one.cache.items():
        assert rows.shape[2] == len(ids) and nmse(many.cache[kind], rows) <= 1e-9


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_padding_and_batches(goldens, name):
    """Sequences of different lengths in one call, padded on the left, and each of them continued."""
    ids, session = golden_expected(name)["ids"], OnnxSession(goldens[name, "q0f32"])
    sequences, batch, mask = (ids[:12], ids[20:27]), np.zeros((2, 12), np.int64), np.zeros((2, 12), np.int64)
    for row, tokens in enumerate(sequences):
        batch[row, -len(tokens):], mask[row, -len(tokens):] = tokens, 1
    session.reset(batch=2)
    session.forward(batch[:, :9], mask[:, :9])
    logits, _ = session.forward(batch[:, 9:], mask[:, 9:])
    for row, tokens in enumerate(sequences):
        session.reset()
        assert nmse(logits[row], session.forward(tokens[None])[0][0, -3:]) <= 1e-9


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(name, tmp_path):
    source = RandomCheckpoint(VARIANTS[name], name)
    ids = np.random.default_rng(0).integers(0, source.config.vocab_size, 30)
    expected_logits, expected_scores = oracle(source, ids)
    logits, scores = in_chunks(OnnxSession(export(source, "q0f32", tmp_path / "out")), ids, [11])
    assert nmse(logits, expected_logits) <= 1e-9 and nmse(scores, expected_scores) <= 1e-9


def test_the_demo_agrees_with_its_artifact(tmp_path):
    demo = open_checkpoint(DEMO_FOLDER)
    text = (DEMO_FOLDER / "heldout.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json")).encode(text).ids[:100]
    expected_logits, expected_scores, _ = compile_model(demo, "q0f32").chunks(ids, [len(ids)])
    logits, scores = in_chunks(OnnxSession(export(demo, "q0f32", tmp_path / "out")), ids, [60])
    assert nmse(logits, expected_logits) <= 1e-9 and nmse(scores, expected_scores) <= 1e-9
    assert np.array_equal(logits.argmax(-1), expected_logits.argmax(-1))


@pytest.mark.filterwarnings("ignore:Renaming name")
@pytest.mark.parametrize("config", [MLA, GQA], ids=["mla", "gqa"])
def test_relax_imports_it_back(config, tmp_path):
    """One import, compiled once, serves a first pass and one that continues its cache: axes stay symbolic."""
    source, first, total = RandomCheckpoint(replace(config, num_hidden_layers=1), "relax"), 4, 6
    ids = np.random.default_rng(1).integers(0, config.vocab_size, total)
    expected_logits, expected_scores = oracle(source, ids)
    out = export(source, "q0f32", tmp_path / "out")
    model = onnx.load(out / "model.onnx")
    vm = relax.VirtualMachine(relax.build(from_onnx(model), cpu_target().tvm_target), tvm.cpu())
    cache = OnnxSession(out).cache
    for start, stop in ((0, first), (first, total)):
        feeds = {"input_ids": ids[None, start:stop], "attention_mask": np.ones((1, stop)),
                 "position_ids": np.arange(start, stop)[None]}
        feeds = {name: value.astype(np.int64) for name, value in feeds.items()} | cache
        results = vm["main"](*(tvm.runtime.tensor(feeds[argument.name]) for argument in model.graph.input))
        results = {output.name: result.numpy() for output, result in zip(model.graph.output, results)}
        assert nmse(results["logits"][0], expected_logits[start:stop]) <= 1e-9
        assert nmse(results["router_scores"][:, 0], expected_scores[:, start:stop]) <= 1e-9
        cache = {name: results[name.replace("past_key_values", "present")] for name in cache}
