"""build.py --package: the folder that mlc_llm package takes, checked as MLC's own command reads it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from building import build, command
from checkpoints import GQA, write_random_checkpoint, write_random_draft

from blockffn_mlc import builder
from blockffn_mlc.builder import make_plan
from blockffn_mlc.errors import UserError
from blockffn_mlc.mlc.package import FILE, package_folder
from targets import TARGETS, find_target
from targets.tools import host_library, system_library


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped") / "model"
    write_random_checkpoint(folder, GQA)
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')
    return folder


@pytest.fixture(params=["android", "iphone"])
def phone(request, monkeypatch):
    """A target with MLC's functions and a library for apps: this processor, called a phone. Its libraries are not
    compiled, which takes long."""
    target = replace(find_target("cpu"), forms=(host_library(), system_library()), mlc_device=request.param)
    monkeypatch.setitem(TARGETS, "cpu", replace(TARGETS["cpu"], make=lambda cpu: target))

    def write(graph, target, stem, prefix, stage):
        stem.parent.mkdir(parents=True, exist_ok=True)
        for form in target.forms:
            stem.with_name(stem.name + form.suffix).write_text(f"{prefix} {form.suffix}")
        return {}

    monkeypatch.setattr(builder, "write_libraries", write)
    return request.param


def read_as_mlc(folder):
    """What mlc_llm package checks of each model before it links, run in ``folder``; the model's entry."""
    config = json.loads((folder / FILE).read_text())
    assert config["device"] in ("iphone", "macabi", "android")
    (entry,) = config["model_list"]
    assert isinstance(entry["bundle_weight"], bool) and isinstance(entry["estimated_vram_bytes"], int)
    library = config["model_lib_path_for_prepare_libs"][entry["model_lib"]]
    assert not Path(library).is_absolute() and (folder / library).is_file()
    assert not entry["model"].startswith(("HF://", "https://")) and entry["bundle_weight"]
    assert (folder / entry["model"] / "mlc-chat-config.json").is_file()
    assert (folder / entry["model"] / "tensor-cache.json").is_file()
    return config["device"], entry, folder / library


def test_a_package_is_what_mlc_reads(grouped, phone, tmp_path, monkeypatch):
    out = tmp_path / "chat"
    built = json.loads(build("--model", grouped, "--package", "--quantization", "q4f16_1", "-o", out,
                             "--system-lib-prefix", "tiny_model_", "--json").stdout)
    package = tmp_path / "chat-package"
    assert built["package"] == str(package) == str(package_folder(out))
    shutil.move(package, tmp_path / "elsewhere")
    device, entry, library = read_as_mlc(tmp_path / "elsewhere")
    assert device == phone and entry["model_id"] == "chat" and entry["model_lib"] == "tiny_model"
    assert library.read_text() == "tiny_model_ .tar"
    cache = 2 * GQA.num_hidden_layers * GQA.num_key_value_heads * GQA.head_dim * GQA.max_position_embeddings
    usage = make_plan(GQA, find_target("cpu"), "q4f16_1", mlc=True).graph.memory_usage
    assert entry["estimated_vram_bytes"] == built["weight_bytes"] + 2 * cache + 2 * max(usage.values())
    model = tmp_path / "elsewhere" / entry["model"]
    records = json.loads((model / "tensor-cache.json").read_text())["records"]
    assert {path.name for path in model.iterdir()} == {
        "mlc-chat-config.json", "tensor-cache.json", "tokenizer.json", *(record["dataPath"] for record in records)}
    assert all((model / path.name).read_bytes() == path.read_bytes() for path in out.glob("params_shard_*.bin"))
    assert "create_tir_paged_kv_cache" in built["functions"]


def test_a_draft_is_packaged_beside_its_model(grouped, phone, tmp_path):
    write_random_draft(tmp_path / "eagle", GQA, frequent=range(0, GQA.vocab_size, 2))
    build("--model", grouped, "--draft", tmp_path / "eagle", "--package", "--quantization", "q4f16_1", "-o",
          tmp_path / "chat", "--system-lib-prefix", "tiny_model_")
    package, draft = tmp_path / "chat-package", tmp_path / "chat-package" / "chat-draft"
    read_as_mlc(package)
    libraries = json.loads((package / FILE).read_text())["model_lib_path_for_prepare_libs"]
    assert {name: (package / path).read_text() for name, path in libraries.items()} == {
        "tiny_model": "tiny_model_ .tar", "tiny_model_draft": "tiny_model_draft_ .tar"}
    records = json.loads((draft / "tensor-cache.json").read_text())["records"]
    assert {path.name for path in draft.iterdir()} == {
        "mlc-chat-config.json", "tensor-cache.json", *(record["dataPath"] for record in records)}
    text = (package / "README.md").read_text()
    assert "`chat-draft/`" in text and "system://tiny_model_draft" in text and "no draft model" not in text


def test_its_readme_names_every_step(grouped, phone, tmp_path):
    build("--model", grouped, "--package", "-o", tmp_path / "chat")
    text = (tmp_path / "chat-package" / "README.md").read_text()
    words = ["mlc_llm package --output $MLC_LLM_SOURCE_DIR/", "blockffn_model_q0f16", "Plain chat", "interactive",
             "Speculative decoding needs a change of the app", "no draft model", "nobody has reported"]
    words += {"android": ["bundle_weight.py", "ANDROID_NDK", "TVM_SOURCE_DIR"], "iphone": ["Xcode"]}[phone]
    for word in words:
        assert word in text, word
    assert "Vulkan" not in text


def test_a_package_replaces_an_earlier_one_and_nothing_else(grouped, phone, tmp_path):
    command = ["--model", grouped, "--package", "-o", tmp_path / "chat"]
    package = tmp_path / "chat-package"
    build(*command)
    (package / "left over").write_text("")
    build(*command)
    assert read_as_mlc(package)[0] == phone and not (package / "left over").exists()
    (package / FILE).unlink()
    result = build(*command, check=False)
    assert result.returncode == 1 and "chat-package: needed for the package, but holds something else" in result.stderr
    assert (package / "chat").is_dir()


@pytest.mark.parametrize(("target", "words"), [
    ("cpu", "--package: target cpu makes no library that apps are linked with"),
    ("opencl", "--package: target opencl makes no library that apps are linked with"),
    ("vulkan", "--package: target vulkan makes no library that apps are linked with")])
def test_targets_without_apps_are_refused(grouped, tmp_path, target, words):
    result = build("--model", grouped, "--package", "--target", target, "-o", tmp_path / "out", "--dry-run",
                   check=False)
    assert result.returncode == 1 and words in result.stderr and "android" in result.stderr


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("options", "expected"), [((), None), (("--mlc",), True), (("--no-mlc",), False)])
def test_which_targets_have_mlcs_functions(grouped, monkeypatch, name, options, expected):
    asked = []

    def plan(*arguments):
        asked.append(arguments[-2])
        raise UserError("enough")

    monkeypatch.setattr(command, "make_plan", plan)
    build("--model", grouped, "--target", name, "--dry-run", *options, check=False)
    assert asked == [name not in ("cpu", "cpu:aarch64", "opencl") if expected is None else expected]


def test_a_package_without_the_functions_is_refused(grouped):
    result = build("--model", grouped, "--target", "android", "--package", "--no-mlc", check=False)
    assert result.returncode == 2 and "--package: apps of MLC's need its functions; leave --no-mlc out" in result.stderr
