"""Compiled models on devices: the original implementation's numbers, with and without drafts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiled import nmse
from counters import counter
from greedy import Pair, check_bound, check_no_tie
from machine import vulkan_device

import build as compiler
from runtime_py import Engine
from runtime_py.drafters.scripted import ScriptedDrafter

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden"
VALIDATED = """
import json
import sys
from runtime_py.cli import main
from runtime_py.tvm_runtime import load_runtime

assert main(["generate", sys.argv[1], "--ids", sys.argv[2], "--max-tokens", "24", "--draft", "ngram", "--json"]) == 0
print(json.dumps(list(load_runtime().get_global_func("blockffn.vulkan.validation_messages")())))
"""


@pytest.fixture(scope="module", params=["mla_block", "gqa_block_linear"])
def golden(request, each_device, tmp_path_factory):
    """An engine in q0f32 and what the original implementation computed."""
    folder = tmp_path_factory.mktemp("golden") / request.param
    assert compiler.main(["--model", str(GOLDEN / request.param), "--quantization", "q0f32", "--target",
                          each_device.kind, "--no-mlc", "-o", str(folder), "-q"]) == 0
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
    check_no_tie(logits, "q0f32")
    script = ScriptedDrafter([*prompt, *plain.ids], 0.6, engine.artifact.config.vocab_size, seed=1)
    drafted = engine.generate(prompt, 24, draft=script, tree_size=8)
    list(drafted)
    assert drafted.ids == plain.ids and max(drafted.stats.accept_lengths) > 1


@pytest.mark.parametrize(("name", "quantization"), [("mla_block", "q0f16"), ("gqa_block_linear", "q4f32_1")])
def test_other_formats_generate_the_processors_text(name, quantization, tmp_path):
    """On Vulkan, where validation layers have nothing to say of it; the demo is compared in q4f16_1
    (test_demo_on_devices.py)."""
    device = vulkan_device()
    cpu, other = Pair.build(device, tmp_path, "--model", GOLDEN / name, "--quantization", quantization)
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        prompt = arrays["ids"][0].tolist()[:12]
    text = cpu.generate(prompt, 24, draft="none")
    list(text)
    ids = [*prompt, *text.ids]
    logits, others = (engine.score(ids, 8).logits[len(prompt) - 1:-1] for engine in (cpu, other))
    check_bound(logits, np.asarray(others), quantization)
    for draft in ("none", ScriptedDrafter(ids, 0.6, cpu.artifact.config.vocab_size, seed=1)):
        found = other.generate(prompt, 24, draft=draft, tree_size=None if draft == "none" else 8)
        list(found)
        assert found.ids == text.ids
        assert draft == "none" or max(found.stats.accept_lengths) > 1
    (tmp_path / "ids.json").write_text(json.dumps(prompt))
    result = subprocess.run(
        [sys.executable, "-c", VALIDATED, str(tmp_path / device.kind), str(tmp_path / "ids.json")], cwd=ROOT, text=True,
        capture_output=True, timeout=300, env=os.environ | {"BLOCKFFN_VULKAN_VALIDATION": "1"})
    assert result.returncode == 0, result.stderr
    found, messages = result.stdout.rstrip().rsplit("\n", 1)
    assert json.loads(found)["ids"] == text.ids and json.loads(messages) == [], result.stderr
