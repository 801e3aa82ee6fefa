"""What MLC's engine does with an artifact: every step goes as it should, and what goes wrong is found."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
from building import build

from runtime_py.cli import main
from runtime_py.engine import Engine
from runtime_py.mlc.check import check
from runtime_py.mlc.eagle import EmulatedEagle
from runtime_py.mlc.engine import EmulatedEngine
from runtime_py.mlc.functions import FUNCTIONS
from runtime_py.tvm_runtime import model_library
from targets import TARGETS, find_target

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
STEPS = ["files", "load", "functions", "metadata", "create cache", "prefill", "decode", "go back", "second turn",
         "long prompt", "two sequences", "fork", "verify a chain", "verify a tree", "hidden states", "sampler path",
         "scatter, gather"]
DRAFT_STEPS = ["draft files", "load draft", "draft functions", "draft metadata", "draft cache", "draft states",
               "draft in batches", "speculate"]
# The model, its draft and its format; the demo, with latent attention and a draft, where none is named. Values of the
# last one are narrower than keys.
MODELS = {
    "gqa": ("--model", GOLDEN / "gqa_block_linear", "--draft", GOLDEN / "eagle_gqa", "--quantization", "q0f32"),
    "demo": ("--quantization", "q4f16_1"),
    "expanded": ("--model", GOLDEN / "mla_block", "--draft", GOLDEN / "eagle_gqa", "--quantization", "q4f32_1",
                 "--mlc-cache", "mha")}
KERNELS = {"gqa": {"rope_heads"}, "demo": {"latent_heads", "value_up"},
           "expanded": {"expanded_heads", "linear_heads", "widen"}}
PROMPT = [1, 5, 9, 33, 7, 100]


@pytest.fixture(scope="module")
def few_tiles():
    """Few token tiles compile fast and change no result."""
    target = find_target("cpu")
    target = replace(target, tiles=replace(target.tiles, token_tiles=(1, 4), q4_token_tiles=(1, 4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TARGETS, "cpu", replace(TARGETS["cpu"], make=lambda cpu: target))
        yield


@pytest.fixture(scope="module")
def artifacts(few_tiles, tmp_path_factory):
    """By name, with MLC's functions."""
    folder = tmp_path_factory.mktemp("mlc")
    for name, options in MODELS.items():
        build(*options, "--activations", "f32", "--mlc", "-q", "-o", folder / name)
    return {name: folder / name for name in MODELS}


@pytest.fixture(scope="module")
def engine(artifacts):
    return Engine.load(artifacts["gqa"])


@pytest.mark.parametrize("name", MODELS)
def test_every_step_goes_as_it_should(artifacts, name, capsys):
    assert main(["mlc-check", str(artifacts[name]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and [step["name"] for step in found["steps"]] == STEPS + DRAFT_STEPS
    assert set(found["functions"]) == set(FUNCTIONS) and "missing" not in found["functions"].values()
    assert found["functions"]["batch_verify"] == "present"
    assert found["functions"]["create_flashinfer_paged_kv_cache"] == "optional, absent"
    assert main(["mlc-check", str(artifacts[name])]) == 0
    captured = capsys.readouterr()
    assert "24 greedy tokens as ours" in captured.out and "missing: none" in captured.out
    assert f"{len(found['steps'])} steps as MLC's engine takes them on cpu" in captured.err


@pytest.mark.parametrize("name", MODELS)
def test_kernels_around_the_model_verify(artifacts, name, capsys):
    assert main(["verify", str(artifacts[name]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    factories = {kernel["factory"] for kernel in found["kernels"]}
    assert {"row_numbers", "softmax_with_temperature", "apply_penalty", "apply_bitmask", "apply_logit_bias",
            "gather_rows", "scatter_rows"} | KERNELS[name] <= factories


def test_our_own_runtime_runs_the_same_artifact(artifacts, engine):
    """The golden test's engine is built without MLC's functions; passes are the same kernels."""
    assert [token.id for token in engine.generate(PROMPT, 8, draft="none")]
    assert "create_tir_paged_kv_cache" not in json.loads((artifacts["gqa"] / "kernels.json").read_text())["passes"]


def test_an_artifact_without_the_functions(few_tiles, tmp_path, capsys):
    build("--model", GOLDEN / "gqa_block_linear", "--quantization", "q0f32", "-q", "-o", tmp_path / "plain")
    assert main(["mlc-check", str(tmp_path / "plain")]) == 1
    captured = capsys.readouterr()
    assert "FAILED functions" in captured.out and "missing: embed, alloc_embedding_tensor" in captured.err
    assert "rebuild with --mlc" in captured.err


@pytest.mark.parametrize(("file", "path", "value", "message"), [
    ("mlc-chat-config.json", ["conv_template", "seps"], None, "field 'conv_template.seps': MLC's engine expects"),
    ("mlc-chat-config.json", ["sliding_window_size"], 4096, "field 'sliding_window_size': MLC's engine expects -1"),
    ("tensor-cache.json", ["metadata", "ParamSize"], "many", "field 'metadata.ParamSize': MLC's engine expects a"),
    ("draft/mlc-chat-config.json", ["vocab_size"], 0, "field 'vocab_size': MLC's engine expects a positive integer")])
def test_files_that_the_engine_could_not_read(artifacts, tmp_path, capsys, file, path, value, message):
    shutil.copytree(artifacts["gqa"], tmp_path / "changed", copy_function=os.link)
    changed = json.loads((tmp_path / "changed" / file).read_text())
    *parents, name = path
    reduce(getitem, parents, changed)[name] = value
    (tmp_path / "changed" / file).unlink()
    (tmp_path / "changed" / file).write_text(json.dumps(changed))
    assert main(["mlc-check", str(tmp_path / "changed")]) == 1
    captured = capsys.readouterr()
    assert f"MLC's engine could not run it: {'draft ' * file.startswith('draft')}files: " in captured.err
    assert f"{file.removeprefix('draft/')}: {message}" in captured.err and "rebuild with --mlc" in captured.err


@pytest.mark.parametrize(("field", "value", "message"), [
    ("max_batch_size", None, "_metadata: field 'max_batch_size': MLC's engine expects a positive integer, found None"),
    ("params", {}, "field 'params'"), ("tensor_parallel_shards", 2, "expects 1, found 2"),
    ("kv_cache", {"num_hidden_layers": 2}, "field 'kv_cache.num_attention_heads' is missing")])
def test_metadata_that_the_engine_could_not_read(engine, monkeypatch, field, value, message):
    plain = EmulatedEngine.__init__

    def changed(self, *arguments):
        plain(self, *arguments)
        self.metadata[field] = value
    monkeypatch.setattr(EmulatedEngine, "__init__", changed)
    *_, last = check(engine)
    assert last.name == "metadata" and not last.ok
    assert message in last.detail and last.detail.endswith("rebuild with --mlc")


@pytest.mark.parametrize(("method", "step"), [
    ("prefill", "prefill"), ("decode", "decode"), ("pop", "go back"), ("batch_decode", "two sequences"),
    ("fork", "fork"), ("commit", "verify a chain"), ("hidden", "hidden states"), ("call", "sampler path"),
    ("hidden", "draft states"), ("batch_hidden", "draft in batches"), ("logits", "speculate")])
def test_a_step_that_goes_wrong_is_found(engine, monkeypatch, method, step):
    """The method does nothing, or gives another result."""
    plain = getattr(EmulatedEngine, method)

    def wrong(self, *arguments, **options):
        result = plain(self, *arguments, **options)
        if method in ("pop", "commit"):
            raise RuntimeError("kv cache: no such sequence\nmore")
        if method == "call":
            return result[0], [array + 1 for array in result[1]]
        if method == "logits":
            return -result
        return None if result is None else result + 0.5 * result[..., :1]
    if method == "fork":
        def wrong(self, parent, child):
            self.add(child)
            self.prefill(child, [3, 4, 5])
    monkeypatch.setattr(EmulatedEngine, method, wrong)
    steps = {found.name: found for found in check(engine)}
    assert not steps[step].ok and any(words in steps[step].detail for words in (
        "NMSE", "fails: kv cache: no such", "another one than our runtime's greedy text has"))


@pytest.mark.parametrize(("changed", "step", "message"), [
    ({"mlc_draft": {"folder": "elsewhere", "library": "draft/none.so"}}, "draft files", "fails: "),
    ({"mlc_draft": {"folder": "draft", "library": "draft/none.so"}}, "load draft", "fails: "),
    ({"mlc_draft": {"folder": ".", "library": "lib/blockffn-q0f32-cpu.so"}}, "draft functions",
     "missing: fuse_embed_hidden_states")])
def test_a_draft_that_the_engine_could_not_use(engine, monkeypatch, changed, step, message):
    monkeypatch.setitem(engine.artifact.chat_config, "blockffn", engine.artifact.chat_config["blockffn"] | changed)
    *_, last = check(engine)
    assert last.name == step and not last.ok and last.detail.startswith(message)


@pytest.mark.parametrize("right", [0, 1, 2, 3])
def test_right_guesses_are_kept_and_wrong_ones_forgotten(engine, monkeypatch, right):
    """The draft's first ``right`` of three guesses are what our runtime says next, the next one is not."""
    made = iter(range(10**6))
    text = [token.id for token in engine.generate(PROMPT, 24, draft="none")]
    artifact, files = engine.artifact, engine.artifact.chat_config["blockffn"]["mlc_draft"]
    target, draft = (EmulatedEngine(model_library(library).module, folder) for library, folder in (
        (artifact.library, artifact.path), (artifact.path / files["library"], artifact.path / files["folder"])))
    for model in (target, draft):
        model.create_cache(2, 128)

    def guess(states):
        assert states.shape == (1, artifact.config.hidden_size)
        turn, level = divmod(next(made), 3)
        logits = np.zeros((1, artifact.config.vocab_size))
        token = [*text, *[0] * 4][turn * (right + 1) + level + 1]
        logits[0, token if level < right else (token + 1) % artifact.config.vocab_size] = 1
        return logits
    monkeypatch.setattr(draft, "logits", guess)
    eagle = EmulatedEagle(target, draft, 1)
    assert eagle.generate(PROMPT, 20, 3)[:20] == text[:20]
    assert eagle.accepted == right * eagle.drafted / 3


@pytest.mark.parametrize("name", MODELS)
def test_under_older_runtimes(artifacts, name):
    """MLC's own TVM lies between these versions."""
    pythons = [path for path in os.environ.get("BLOCKFFN_OLDER_TVM", "").split(os.pathsep) if path]
    if not pythons:
        pytest.skip("this machine lacks environments with older TVM runtimes, which tools/older_tvm.py makes")
    prompt = PROMPT[:4]  # none of the models ends its text there
    ours = [token.id for token in Engine.load(artifacts[name]).generate(prompt, 24, draft="none")]
    versions = set()
    for python in pythons:
        result = subprocess.run(
            [python, Path(__file__).with_name("mlc_texts.py"), artifacts[name],
             ROOT / "runtime_py" / "mlc" / "engine.py", json.dumps(prompt)],
            capture_output=True, text=True, check=False, env=os.environ | {"TVM_NUM_THREADS": "2"})
        assert result.returncode == 0, result.stderr[-2000:]
        found = json.loads(result.stdout)
        versions.add(found["version"])
        assert found["tokens"] == ours and found["verified"] == ours[-4:]
    assert len(versions) == len(pythons) == 2


