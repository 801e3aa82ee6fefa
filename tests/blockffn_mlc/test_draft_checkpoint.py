"""EAGLE drafts on disk: what is read, and what is refused in one sentence."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from checkpoints import GQA, MLA, write_random_draft, write_tensors

import build as command
from blockffn_mlc.checkpoint.draft import PREFIX, WithDraft, open_draft
from blockffn_mlc.config import BlockFFNConfig
from blockffn_mlc.errors import UserError
from blockffn_mlc.random_model import RandomCheckpoint

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TARGET = BlockFFNConfig.from_file(GOLDEN / "gqa_block_linear" / "config.json")
TOKENS = [7, 3, 300, 70000, 5]  # one for every integer of the pickle format
VOCABULARY = 1 << 17


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "eagle_gqa", tmp_path / "draft"))


def edit_config(folder, **changes):
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def edit_tensors(folder, **changes):
    """Replace, add, or (None) remove tensors."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | {name.replace("__", "."): value for name, value in changes.items()}
    path.unlink()
    write_tensors(folder, {name: value for name, value in tensors.items() if value is not None})


def refusal(folder, target=TARGET, vocabulary=None):
    with pytest.raises(UserError) as caught:
        open_draft(folder, target, vocabulary)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("format", ["safetensors", "sharded", "bin"])
@pytest.mark.parametrize("bias", [False, True])
def test_every_format_is_read(tmp_path, format, bias):
    expected = write_random_draft(tmp_path / "draft", GQA, layers=2, bias=bias, format=format)
    opened = open_draft(tmp_path / "draft", GQA)
    assert opened.draft.has_bias == bias and opened.draft.token_ids is None
    fc = expected.pop("fc.weight")
    np.testing.assert_array_equal(opened.read("fc1.weight"), fc[:, :GQA.hidden_size])
    np.testing.assert_array_equal(opened.read("fc2.weight"), fc[:, GQA.hidden_size:])
    if bias:
        np.testing.assert_array_equal(opened.read("fc1.bias"), expected.pop("fc.bias"))
    for name, values in expected.items():
        np.testing.assert_array_equal(opened.read(name), values)


def test_a_draft_stands_beside_its_target(tmp_path):
    expected = write_random_draft(tmp_path / "draft", GQA)
    target = RandomCheckpoint(GQA, "seed")
    both = WithDraft(target, open_draft(tmp_path / "draft", GQA))
    name = "input_norm1.weight"
    np.testing.assert_array_equal(both.read(PREFIX + name), expected[name])
    np.testing.assert_array_equal(both.read("model.norm.weight"), target.read("model.norm.weight"))


def test_what_the_target_has_itself_is_ignored(folder):
    edit_tensors(folder, embed_tokens__weight=np.zeros((3, 3), np.float32), lm_head__weight=np.zeros(1, np.float32),
                 layers__0__input_layernorm__weight=np.zeros(9, np.float32))
    assert len(open_draft(folder, TARGET).draft.token_ids) == 128


def test_optional_fields_have_defaults(folder):
    edit_config(folder, hidden_size=None, vocab_size=None, head_dim=None)
    config = open_draft(folder, TARGET).draft.config
    assert (config.hidden_size, config.head_dim) == (256, 64)


@pytest.mark.parametrize(("changes", "words"), [
    ({"hidden_size": 512}, ["hidden_size", "256", "512"]),
    ({"vocab_size": 600}, ["vocab_size", "512", "600"]),
    ({"hidden_act": "gelu"}, ["hidden_act", "silu", "gelu"]),
    ({"intermediate_size": None}, ["intermediate_size", "missing"]),
    ({"num_attention_heads": 0}, ["num_attention_heads", "positive", "0"]),
    ({"num_hidden_layers": "one"}, ["num_hidden_layers", "positive", "one"]),
    ({"num_key_value_heads": 3}, ["num_key_value_heads", "divisor", "4", "3"]),
    ({"head_dim": 63}, ["head_dim", "even", "63"]),
    ({"head_dim": 32}, ["self_attn.q_proj.weight", "[128, 256]", "[256, 256]"]),
    ({"intermediate_size": 400}, ["gate_proj.weight", "[400, 256]", "[384, 256]"]),
    ({"num_hidden_layers": 2}, ["layers.1.self_attn.q_proj.weight", "missing"]),
])
def test_configurations_that_do_not_fit_are_refused(folder, changes, words):
    edit_config(folder, **changes)
    message = refusal(folder)
    assert all(word in message for word in [*words, str(folder)]), message


@pytest.mark.parametrize(("changes", "words"), [
    ({"fc__weight": np.zeros((256, 256), np.float32)}, ["fc.weight", "[256, 512]", "[256, 256]"]),
    ({"fc__weight": np.zeros((256, 512), np.int32)}, ["fc.weight", "dtype", "I32"]),
    ({"input_norm2__weight": None}, ["input_norm2.weight", "missing", "[256]"]),
    ({"layers__0__mlp__extra": np.zeros(3, np.float32)}, ["layers.0.mlp.extra", "surplus"]),
])
def test_tensors_that_do_not_fit_are_refused(folder, changes, words):
    edit_tensors(folder, **changes)
    message = refusal(folder)
    assert all(word in message for word in [*words, str(folder)]), message


def test_a_draft_of_another_model_is_refused(folder):
    message = refusal(folder, MLA)
    assert "hidden_size" in message and "64" in message and "256" in message


def test_what_is_no_draft_is_refused(tmp_path, folder):
    assert "no such folder" in refusal(tmp_path / "none")
    (folder / "config.json").write_text("[1]")
    assert "JSON object" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "not readable as JSON" in refusal(folder)
    (folder / "config.json").unlink()
    assert "no such file" in refusal(folder)


def write_list(folder, suffix, tokens, protocol=4):
    for path in folder.glob("freq_*"):
        path.unlink()
    path = folder / f"freq_{len(tokens)}{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(tokens))
    elif suffix == ".npy":
        np.save(path, np.array(tokens))
    elif suffix == ".pt":
        torch.save(tokens, path)
    else:
        path.write_bytes(pickle.dumps(tokens, protocol))
    return path


def target_with(vocabulary):
    return BlockFFNConfig.from_dict(TARGET.to_dict() | {"vocab_size": vocabulary, "architectures":
                                                        ["MiniCPMForCausalLM"]})


@pytest.mark.parametrize(("suffix", "protocol"), [
    (".json", 0), (".npy", 0), (".pt", 0), *((".pkl", p) for p in range(6))])
@pytest.mark.parametrize("tokens", [TOKENS, [9], list(range(3000))], ids=len)
def test_every_kind_of_list_is_read(folder, suffix, protocol, tokens):
    edit_config(folder, vocab_size=VOCABULARY)
    write_list(folder, suffix, tokens, protocol)
    assert open_draft(folder, target_with(VOCABULARY)).draft.token_ids == tuple(tokens)


def test_a_list_can_be_cut(folder):
    whole = json.loads((folder / "freq_128.json").read_text())
    assert open_draft(folder, TARGET, 5).draft.token_ids == tuple(whole[:5])
    assert open_draft(folder, TARGET, 128).draft.token_ids == tuple(whole)
    for count in (0, -1, 129):
        message = refusal(folder, vocabulary=count)
        assert f"--draft-vocab {count}" in message and "128" in message and "freq_128.json" in message


def test_one_of_several_lists_is_chosen_by_its_number(folder):
    (folder / "freq_3.json").write_text("[4, 5, 6]")
    assert open_draft(folder, TARGET, 3).draft.token_ids == (4, 5, 6)
    assert "freq_128.json, freq_3.json" in refusal(folder)
    assert "freq_128.json, freq_3.json" in refusal(folder, vocabulary=64)


def test_without_a_list_there_is_nothing_to_cut(folder):
    (folder / "freq_128.json").unlink()
    message = refusal(folder, vocabulary=64)
    assert "--draft-vocab 64" in message and "found none" in message


@pytest.mark.parametrize("suffix", [".json", ".npy", ".pkl", ".pt"])
@pytest.mark.parametrize(("tokens", "words"), [
    ([3, 512], ["0 to 511", "512", "place 1"]), ([-1], ["0 to 511", "-1", "place 0"]),
    ([3, 4, 3], ["distinct", "3 at places 0 and 2"]), ([], ["list of token ids"]), ([0.5], ["list of token ids"]),
    ([True], ["list of token ids"]), ([[3, 4]], ["list of token ids"]), (["3"], ["list of token ids"])])
def test_lists_of_anything_else_are_refused(folder, suffix, tokens, words):
    path = write_list(folder, suffix, tokens)
    message = refusal(folder)
    assert all(word in message for word in [*words, str(path)]), message


@pytest.mark.parametrize("suffix", [".json", ".npy", ".pkl", ".pt"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-3], lambda data: b"\xff" * 40])
def test_damaged_lists_are_refused(folder, suffix, damage):
    path = write_list(folder, suffix, [3, 4, 5])
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in refusal(folder)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_runs_code(folder, tmp_path, protocol):
    mark = tmp_path / "mark"
    for attack in (Attack(os.mkdir, str(mark)), [3, Attack(os.mkdir, str(mark))], {3: Attack(os.mkdir, str(mark))}):
        data = pickle.dumps(attack, protocol)
        path = write_list(folder, ".pkl", [3])
        path.write_bytes(data)
        message = refusal(folder)
        assert "refused at its instruction" in message and "JSON" in message
        path.unlink()
        torch.save(attack, path := path.with_suffix(".pt"), pickle_protocol=max(protocol, 2))
        message = refusal(folder)
        assert str(path) in message and "refused at its instruction" in message and "JSON" in message
        assert not mark.exists()
        pickle.loads(data)  # the attack is real
        mark.rmdir()


@pytest.mark.parametrize("data", [
    b"\x80\x04cos\nsystem\n.", b"\x80\x04\x8c\x02os\x8c\x06system\x93.", b"\x80\x02]r\xff\xff\xff\x7f(K\x03e.",
    b"\x80\x04]\x82\x01.", b"Pid\n.", b"\x80\x05\x97.", b"\x80\x04(K\x03K\x04t."])
def test_odd_pickles_cost_nothing(folder, data):
    """By names, extension codes, persistent ids, buffers, tuples; a place in the memo that would take gigabytes."""
    path = write_list(folder, ".pkl", [3])
    path.write_bytes(data)
    if b"(K\x03e" in data:
        assert open_draft(folder, TARGET).draft.token_ids == (3,)
    else:
        assert str(path) in refusal(folder)


@pytest.mark.parametrize(("names", "how", "words"), [
    (["freq_3/data.pkl"], zipfile.ZIP_DEFLATED, "stored as it is"), ([], zipfile.ZIP_STORED, "one data.pkl"),
    (["a/data.pkl", "b/data.pkl"], zipfile.ZIP_STORED, "one data.pkl")])
def test_archives_that_torch_would_not_write_are_refused(folder, names, how, words):
    path = write_list(folder, ".pt", [3])
    with zipfile.ZipFile(path, "w", how) as archive:
        for name in names:
            archive.writestr(name, pickle.dumps([3], 2))
    message = refusal(folder)
    assert str(path) in message and words in message


def test_a_list_of_another_kind_is_not_overlooked(folder):
    (folder / "freq_128.json").rename(folder / "freq_128.txt")
    for count in (None, 128):
        message = refusal(folder, vocabulary=count)
        assert "freq_128.txt" in message and "freq_N.json, freq_N.npy, freq_N.pkl, freq_N.pt" in message
    (folder / "freq_5.json").write_text("[1, 2, 3, 4, 5]")
    assert "freq_128.txt, freq_5.json" in refusal(folder)
    assert open_draft(folder, TARGET, 5).draft.token_ids == (1, 2, 3, 4, 5)


def test_a_file_too_large_for_a_list_is_not_read(folder):
    path = folder / "freq_128.json"
    with path.open("wb") as file:
        file.truncate(1 << 32)  # sparse
    message = refusal(folder)
    assert str(1 << 32) in message and "512" in message


def test_the_command_line_refuses_in_one_sentence(folder, capsys):
    model = str(GOLDEN / "gqa_block_linear")
    assert command.main(["--model", model, "--draft", str(folder), "--draft-vocab", "999", "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert "error: --draft-vocab 999: expected 1 to 128" in error and "Traceback" not in error
    with pytest.raises(SystemExit) as stop:
        command.main(["--model", model, "--draft-vocab", "5", "--dry-run"])
    assert stop.value.code == 2 and "--draft DIR" in capsys.readouterr().err
