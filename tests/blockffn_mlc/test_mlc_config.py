"""What build.py writes for MLC's engine, against a schema of what its readers require."""

import copy
import json
import re

import pytest
from building import build
from checkpoints import GQA, MLA, write_random_checkpoint, write_random_draft

from blockffn_mlc import builder, shards
from blockffn_mlc.builder import make_plan
from blockffn_mlc.chat_config import chat_config
from blockffn_mlc.checkpoint.draft import Draft
from blockffn_mlc.draft_config import DraftConfig
from blockffn_mlc.errors import UserError
from runtime_py.mlc import schema
from targets import find_target

WRONG = [None, "text", 1.5, True, {}, [None], -7]


def fields(kinds, path=()):
    """Every field of a schema, as a path of names; objects too."""
    for name, kind in kinds.items():
        yield (*path, name), kind
        if isinstance(kind, dict):
            yield from fields(kind, (*path, name))


def owner(raw, path):
    for name in path[:-1]:
        raw = raw[name]
    return raw


def refusal(check, raw):
    with pytest.raises(UserError) as caught:
        check(raw, "FILE")
    return str(caught.value)


@pytest.fixture(scope="module")
def plan():
    draft = Draft(DraftConfig(GQA.hidden_size, 1, 96, 4, 2, 16), True, tuple(range(0, GQA.vocab_size, 2)))
    return make_plan(GQA, find_target("cpu"), "q4f16_1", draft=draft, mlc=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An artifact's folder; its library is not compiled."""
    folder = tmp_path_factory.mktemp("written")
    write_random_checkpoint(folder / "model", GQA)
    write_random_draft(folder / "draft", GQA, frequent=range(0, GQA.vocab_size, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "write_libraries", lambda *_: {})
        patch.setattr(shards, "SHARD_BYTES", 8192)
        build("--model", folder / "model", "--draft", folder / "draft", "--mlc", "--quantization", "q4f16_1",
              "-o", folder / "out")
    return folder / "out"


def read(folder, name):
    return json.loads((folder / name).read_text())


def described(graph):
    """What a library's _metadata() says."""
    return json.loads(graph.relax_functions()["_metadata"].body.body.value)


def documents(plan, written):
    return {"chat": (schema.check_chat_config, schema.CHAT_CONFIG, read(written, "mlc-chat-config.json")),
            "metadata": (schema.check_metadata, schema.METADATA, described(plan.graph)),
            "draft's chat": (schema.check_chat_config, schema.CHAT_CONFIG, read(written, "draft/mlc-chat-config.json")),
            "draft's metadata": (schema.check_metadata, schema.METADATA, described(plan.draft.graph)),
            "draft's index": (schema.check_tensor_cache, schema.INDEX, read(written, "draft/tensor-cache.json")),
            "index": (schema.check_tensor_cache, schema.INDEX, read(written, "tensor-cache.json"))}


DOCUMENTS = [f"{of}{name}" for of in ("", "draft's ") for name in ("chat", "metadata", "index")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_written_fits_the_schema_and_every_field_is_needed(plan, written, document):
    check, kinds, good = documents(plan, written)[document]
    check(good, "FILE")
    for path, kind in fields(kinds):
        name = ".".join(path)
        bad = copy.deepcopy(good)
        del owner(bad, path)[path[-1]]
        assert f"FILE: field {name!r} is missing" in refusal(check, bad)
        for value in WRONG:
            if isinstance(kind, dict) and value == {} or not isinstance(kind, dict) and kind.test(value):
                continue
            bad = copy.deepcopy(good)
            owner(bad, path)[path[-1]] = value
            error = refusal(check, bad)
            assert f"FILE: field {name!r}" in error and repr(value) in error, error


def test_records_of_tensors_and_parameters_are_checked_by_name(plan, written):
    _, _, index = documents(plan, written)["index"]
    for name in schema.TENSOR:
        bad = copy.deepcopy(index)
        record = bad["records"][0]["records"][0]
        del record[name]
        assert f"field {name!r} is missing" in refusal(schema.check_tensor_cache, bad)
    for name in schema.SHARD:
        bad = copy.deepcopy(index)
        del bad["records"][-1][name]
        assert f"field {name!r} is missing" in refusal(schema.check_tensor_cache, bad)
    _, _, good = documents(plan, written)["metadata"]
    for name in schema.PARAM:
        bad = copy.deepcopy(good)
        del bad["params"][3][name]
        assert f"field {name!r} is missing" in refusal(schema.check_metadata, bad)


def test_fields_that_contradict_each_other_are_named(plan, written):
    _, _, good = documents(plan, written)["chat"]
    bad = copy.deepcopy(good)
    bad["model_config"]["vocab_size"] += 1
    assert "field 'model_config.vocab_size': expected 96 as in field 'vocab_size', found 97" in refusal(
        schema.check_chat_config, bad)
    for place, field, limit in ((lambda raw: raw, "prefill_chunk_size", "model_config.prefill_chunk_size"),
                                (lambda raw: raw["model_config"], "model_config.prefill_chunk_size",
                                 "context_window_size")):
        bad = copy.deepcopy(good)
        place(bad)["prefill_chunk_size"] = 10 * good["context_window_size"]
        assert f"field {field!r}: expected at most the {limit} of" in refusal(schema.check_chat_config, bad)


def test_shards_stay_below_the_cap_and_a_larger_tensor_is_alone(written):
    """The cap of ``written`` is 8192 bytes; the format's own is 32 MB."""
    assert shards.SHARD_BYTES == schema.SHARD_BYTES == 32 << 20
    records = read(written, "tensor-cache.json")["records"]
    assert len(records) > 2 and any(len(shard["records"]) > 1 for shard in records)
    for shard in records:
        assert shard["nbytes"] <= 8192 or len(shard["records"]) == 1
        assert (written / shard["dataPath"]).stat().st_size == shard["nbytes"]
        assert all(tensor["format"] == "raw" for tensor in shard["records"])
    assert any(shard["nbytes"] > 8192 for shard in records)
    bad = {"metadata": {"ParamSize": 2, "ParamBytes": 1, "BitsPerParam": 1}, "records": [
        {"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": (32 << 20) + 1, "records": [
            {"name": name, "shape": [1], "dtype": "float32", "format": "raw", "nbytes": 4, "byteOffset": 0}
            for name in "ab"]}]}
    assert "shard 'params_shard_0.bin': expected at most 33554432 bytes" in refusal(schema.check_tensor_cache, bad)


def test_the_template_renders_the_released_chat_format(written):
    """As MLC's engine renders it: prefix tokens, then for every message role, separator, content, separator."""
    template = read(written, "mlc-chat-config.json")["conv_template"]
    roles, seps, between = template["roles"], template["seps"], template["role_content_sep"]
    text = template["system_template"].replace("{system_message}", template["system_message"])
    for turn, (role, content) in enumerate([("user", "Who?"), ("assistant", "I."), ("user", "Why?")]):
        content = template["role_templates"][role].replace("{" + role + "_message}", content)
        text += roles[role] + between + content + seps[turn % len(seps)]
    text += roles["assistant"] + template["role_empty_sep"]
    assert text == "<用户>Who?<AI>I.</s><用户>Why?<AI>"
    assert template["system_prefix_token_ids"] == [GQA.bos_token_id]
    assert template["stop_token_ids"] == list(GQA.eos_token_id)


@pytest.mark.parametrize("of", ["", "draft's "])
def test_parameters_are_those_of_the_tensor_cache(plan, written, of):
    (_, _, described), (_, _, index) = (documents(plan, written)[f"{of}{name}"] for name in ("metadata", "index"))
    stored = {tensor["name"]: tensor for shard in index["records"] for tensor in shard["records"]}
    assert {param["name"]: (param["dtype"], param["shape"]) for param in described["params"]} == {
        name: (tensor["dtype"], tensor["shape"]) for name, tensor in stored.items()}


def test_metadata_tells_of_the_cache(plan):
    """What MLC's engine estimates memory with; latent attention has one head of keys, latent | rotated key."""
    latent = make_plan(MLA, find_target("cpu"), "q4f16_1", mlc=True)
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    for part, sizes in (
            (plan, (GQA.num_hidden_layers, GQA.num_attention_heads, GQA.num_key_value_heads, GQA.head_dim)),
            (plan.draft, (1, 4, 2, 16)),
            (latent, (MLA.num_hidden_layers, MLA.num_attention_heads, 1, MLA.kv_lora_rank + MLA.qk_rope_head_dim))):
        found = described(part.graph)
        assert found["kv_cache"] == dict(zip(names, sizes, strict=True))
        assert (found["context_window_size"], found["prefill_chunk_size"]) == (
            part.build.context_window, part.build.prefill_chunk)


def test_a_long_prompt_is_taken_as_many_tokens_at_a_time_as_a_tree_has():
    """By MLC's engine, which reads the outer field; our runtime reads the inner one, what the library can take."""
    for mlc, chunk, expected in ((True, None, 64), (True, 48, 48), (False, None, 256)):
        plan = make_plan(MLA, find_target("cpu"), "q0f32", prefill_chunk=chunk, mlc=mlc)
        found = chat_config(plan.build, {}, None)
        assert found["prefill_chunk_size"] == expected
        assert found["model_config"]["prefill_chunk_size"] == plan.build.prefill_chunk


def test_the_default_prefix_is_a_valid_name_for_mlc(plan):
    assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", plan.prefix.removesuffix("_"))
