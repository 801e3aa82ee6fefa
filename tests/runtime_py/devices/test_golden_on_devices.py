"""Compiled models on devices: the original implementation's numbers, with and without drafts."""

from pathlib import Path

import numpy as np
import pytest
from compiled import nmse
from counters import counter
from greedy import check_no_tie

import build as compiler
from runtime_py import Engine
from runtime_py.drafters.scripted import ScriptedDrafter

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture(scope="module", params=["mla_block", "gqa_block_linear"])
def golden(request, each_device, tmp_path_factory):
    """An engine in q0f32 and what the original implementation computed."""
    folder = tmp_path_factory.mktemp("golden") / request.param
    assert compiler.main(["--model", str(GOLDEN / request.param), "--quantization", "q0f32", "--target",
                          each_device.kind, "-o", str(folder), "-q"]) == 0
    with np.load(GOLDEN / request.param / "expected.npz") as arrays:
        return Engine.load(folder, device=each_device.name), {name: arrays[name] for name in arrays.files}


def test_scores_equal_the_original_implementation(golden):
    engine, expected = golden
    launches, ids = counter(engine.device.kind, "launches"), expected["ids"][0].tolist()
    for chunk in (None, 7, 1):
        score = engine.score(ids, chunk)
        assert nmse(score.logits, expected["logits"]) <= 1e-9
        assert nmse(score.router_scores, expected["router_scores"]) <= 1e-9
        assert ((score.router_scores != 0) == (expected["router_scores"] != 0)).all()
    assert counter(engine.device.kind, "launches") > launches + len(ids) * engine.artifact.config.num_hidden_layers


def test_drafts_change_no_greedy_token(golden):
    engine, expected = golden
    prompt = expected["ids"][0].tolist()[:12]
    plain = engine.generate(prompt, 24, draft="none")
    list(plain)
    logits = engine.score([*prompt, *plain.ids]).logits[len(prompt) - 1:-1]
    assert plain.ids == logits.argmax(-1).tolist()
    check_no_tie(logits, "float32")
    script = ScriptedDrafter([*prompt, *plain.ids], 0.6, engine.artifact.config.vocab_size, seed=1)
    drafted = engine.generate(prompt, 24, draft=script, tree_size=8)
    list(drafted)
    assert drafted.ids == plain.ids and max(drafted.stats.accept_lengths) > 1
