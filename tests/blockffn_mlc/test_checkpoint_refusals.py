"""Whatever is wrong with a checkpoint is refused with one sentence that names it."""

import json
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import DTYPES, GQA, MLA, stored_tensor, write_config, write_random_checkpoint, write_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockffn_mlc.checkpoint import open_checkpoint
from blockffn_mlc.errors import UserError

UP = "model.layers.1.mlp.up_proj"


def refused(folder, *words):
    """The one-sentence refusal, which must contain ``words``."""
    with pytest.raises(UserError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message


@pytest.fixture
def stored(tmp_path):
    """A written MLA checkpoint's folder, and its tensors as stored, to change and write again."""
    write_random_checkpoint(tmp_path, MLA)
    return tmp_path, safetensors.numpy.load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_tied_head(tmp_path, format):
    config = GQA
    tensors = write_random_checkpoint(tmp_path, config, format=format, dtype="float32")
    stored = dict(stored_tensor(config, name, value, config.ffn_type) for name, value in tensors.items())
    head = stored["model.embed_tokens.weight"].copy()
    write_tensors(tmp_path, stored | {"lm_head.weight": head}, format)
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("model.embed_tokens.weight"), head)
    head[-1, -1] += 1
    write_tensors(tmp_path, stored | {"lm_head.weight": head}, format)
    refused(tmp_path, "lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings")
    write_tensors(tmp_path, stored | {"lm_head.weight": head[1:]}, format)
    refused(tmp_path, "lm_head.weight", "[95, 64]", "[96, 64]")


def test_harmless_buffers_are_ignored(stored):
    folder, tensors = stored
    expected = {name: value.astype(np.float32) for name, value in tensors.items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float64)
    write_tensors(folder, tensors)
    checkpoint = open_checkpoint(folder)
    assert all(np.array_equal(checkpoint.read(name), value) for name, value in expected.items())


def test_missing_surplus_misshapen(stored):
    folder, tensors = stored
    write_tensors(folder, {name: value for name, value in tensors.items() if name != UP})
    refused(folder, folder, UP, "missing", "[12, 16, 64]")
    write_tensors(folder, tensors | {"model.layers.2.mlp.up_proj": tensors[UP]})
    refused(folder, "model.safetensors", "'model.layers.2.mlp.up_proj'", "surplus")
    write_tensors(folder, tensors | {"model.layers.1.mlp.experts.up_proj.weight": tensors[UP]})
    refused(folder, "'model.layers.1.mlp.experts.up_proj.weight'", "surplus")
    write_tensors(folder, tensors | {UP: tensors[UP][:-1]})
    refused(folder, "model.safetensors", UP, "[12, 16, 64]", "[11, 16, 64]")
    write_tensors(folder, tensors | {UP: tensors[UP].reshape(12 * 16, 64)})
    refused(folder, UP, "[12, 16, 64]", "[192, 64]")


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.int32, np.bool_])
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_wrong_dtype(tmp_path, dtype, format):
    tensors = write_random_checkpoint(tmp_path, MLA, format=format)
    write_tensors(tmp_path, tensors | {UP: tensors[UP].astype(dtype)}, format)
    refused(tmp_path, UP, "bfloat16, float16 or float32", "found")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_non_finite_weights(tmp_path, value, dtype, format):
    tensors = write_random_checkpoint(tmp_path, MLA, format=format, dtype=dtype)
    damaged = tensors[UP].astype(DTYPES[dtype])
    damaged[5, 3, 2] = value
    write_tensors(tmp_path, tensors | {UP: damaged}, format)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(UserError, match=rf"(model.safetensors|pytorch_model.bin): tensor '{UP}'.*NaN"):
        checkpoint.read(UP)
    np.testing.assert_array_equal(checkpoint.read_rows(UP, 0, 5), tensors[UP][:5])


def test_folder_without_parts(tmp_path):
    refused(tmp_path / "absent", "absent", "no such folder")
    refused(tmp_path, "config.json", "no such file")
    write_config(tmp_path, MLA)
    refused(tmp_path, "no weights", "model.safetensors", "pytorch_model.bin")
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "model.safetensors")


@pytest.mark.parametrize("share", [0, 0.00001, 0.001, 0.5, 0.99999])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated(tmp_path, share, name):
    write_random_checkpoint(tmp_path, MLA, format="bin" if name.endswith("bin") else "safetensors")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    refused(tmp_path, name, "truncated")


def test_truncated_after_opening(stored):
    folder, _ = stored
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", 20000)
    with pytest.raises(UserError, match="truncated"):
        checkpoint.read("model.norm.weight")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_safetensors_header(stored, data):
    """A header with any bytes changed either is refused with a sentence or still describes these tensors."""
    folder, tensors = stored
    path = folder / "model.safetensors"
    content = bytearray(safetensors.numpy.save(tensors))
    size = 8 + int.from_bytes(content[:8], "little")
    for position in data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.sampled_from([*b'0129"{}[],: a', 0, 255]))
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(folder)
        for name, shape in checkpoint.expected.items():
            assert checkpoint.read(name).shape == shape
    except UserError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize("offsets", [[0, 10**15], [-2, 0], [8, 0], "x", [0], [1.5, 2], None])
def test_bad_safetensors_offsets(tmp_path, offsets):
    write_config(tmp_path, MLA)
    header = json.dumps({UP: {"dtype": "BF16", "shape": [12, 16, 64], "data_offsets": offsets}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    refused(tmp_path, "model.safetensors", "corrupt")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}',
                                     '{"weight_map": {"a": 1}}', '{"weight_map": null}', "\udcff", "[" * 100000])
def test_bad_index(tmp_path, content):
    write_config(tmp_path, MLA)
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    refused(tmp_path, path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "",
                                   "..\\x.safetensors", "a\0b", 7, None, ["x"]])
def test_index_leaves_folder(tmp_path, shard):
    folder = tmp_path / "checkpoint"
    tensors = write_random_checkpoint(folder, MLA)
    os.replace(folder / "model.safetensors", tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, shard)}))
    refused(folder, "model.safetensors.index.json", "same folder", repr(shard))


def test_index_and_shards_disagree(tmp_path):
    write_random_checkpoint(tmp_path, MLA, format="sharded")
    index = tmp_path / "model.safetensors.index.json"
    original = json.loads(index.read_text())
    first, second = sorted(tmp_path.glob("*.safetensors"))
    original["weight_map"].pop(UP)
    index.write_text(json.dumps(original))
    refused(tmp_path, UP, "no entry")
    original["weight_map"][UP] = first.name
    index.write_text(json.dumps(original))
    refused(tmp_path, UP, first.name)
    original["weight_map"][UP] = "model-3.safetensors"
    index.write_text(json.dumps(original))
    refused(tmp_path, "model-3.safetensors", "found none")
    second.unlink()
    refused(tmp_path, "found none")


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_bin_never_runs_code(tmp_path):
    import torch

    write_config(tmp_path, MLA)
    mark = tmp_path / "mark"
    torch.save({"model.norm.weight": RunsCode(mark)}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "pytorch_model.bin", "run code")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(RunsCode(mark)))
    assert not mark.exists()
    refused(tmp_path, "pytorch_model.bin")
    assert not mark.exists()


def test_bin_contents(tmp_path):
    import torch

    write_config(tmp_path, MLA)
    path = tmp_path / "pytorch_model.bin"
    torch.save([torch.zeros(2)], path)
    refused(tmp_path, "dictionary of tensors", "list")
    torch.save({"model": {"a": torch.zeros(2)}}, path)
    refused(tmp_path, "'model'", "dict")
    torch.save({"a": torch.zeros(2).to_sparse()}, path)
    refused(tmp_path, "'a'", "dense")
    torch.save({"a": torch.zeros(2, device="meta")}, path)
    refused(tmp_path, "'a'", "meta")
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    refused(tmp_path, "zip")
    write_tensors(tmp_path, {"a": np.zeros(2, np.float32)}, "bin")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    os.replace(tmp_path / "packed", path)
    refused(tmp_path, "uncompressed")


def test_bin_without_torch(tmp_path, monkeypatch):
    write_random_checkpoint(tmp_path, MLA, format="bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(tmp_path, "pytorch_model.bin", "pip install 'blockffn-mlc[torch]'")
