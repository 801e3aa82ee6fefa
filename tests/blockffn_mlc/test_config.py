"""The configuration reads the released fields and refuses everything that is another model."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from checkpoints import GQA, MLA, write_config
from hypothesis import given, settings
from hypothesis import strategies as st

from blockffn_mlc.config import PRESETS, BlockFFNConfig
from blockffn_mlc.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASED = json.loads((GOLDEN / "mla_block" / "config.json").read_text())
REQUIRED = ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "num_experts", "expert_size"]
MLA_SIZES = ["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"]


def refused(changes, *words):
    """The refusal of the released configuration with ``changes``; a value of None removes the field."""
    raw = {name: value for name, value in (RELEASED | changes).items() if value is not None}
    with pytest.raises(UserError) as caught:
        BlockFFNConfig.from_dict(raw, "some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json: ") and "\n" not in message
    for word in words:
        assert str(word) in message


@pytest.mark.parametrize("name, parameters", [("small", 0.1e9), ("medium", 0.5e9), ("large", 0.8e9), ("xlarge", 1.2e9),
                                              ("3b", 2.8e9)])
def test_named_shapes(name, parameters):
    """The published sizes count the parameters without the embeddings of the untied models."""
    from blockffn_mlc.checkpoint import expected_shapes

    config = BlockFFNConfig.from_name(name)
    assert BlockFFNConfig.from_name(f"BlockFFN-{name.title()}") == config
    total = 0
    for tensor, shape in expected_shapes(config).items():
        if not tensor.endswith(("embed_tokens.weight", "lm_head.weight")):
            size = 1
            for length in shape:
                size *= length
            total += size
    assert total == pytest.approx(parameters, rel=0.3)
    assert config.head_dim == 128 and config.rms_norm_eps == 1e-5 and config.norm_after_router == "rms"


def test_unknown_name():
    with pytest.raises(UserError, match="'huge'.*small, medium, large, xlarge, 3b"):
        BlockFFNConfig.from_name("huge")


def test_released_fields():
    config = BlockFFNConfig.from_file(GOLDEN / "mla_block" / "config.json")
    for field in fields(config):
        if field.name in RELEASED and field.name != "eos_token_id":
            assert getattr(config, field.name) == RELEASED[field.name]
    assert config.eos_token_id == (2,)
    assert (config.qk_head_dim, config.rope_dim, config.head_dim) == (192, 64, 128)
    assert config.residual_scale == pytest.approx(1.4 / 3**0.5) and config.logit_scale == 64 / 256


def test_defaults_when_absent():
    raw = {name: RELEASED[name] for name in REQUIRED} | {"ffn_type": "block"}
    config = BlockFFNConfig.from_dict(raw)
    assert config.attention_type == "vanilla" and config.num_key_value_heads == 2 and config.qk_head_dim == 128
    assert config.norm_after_router == "sum" and config.norm_scale == 1 and config.rms_norm_eps == 1e-6
    assert (config.scale_emb, config.dim_model_base, config.scale_depth) == (1, 1, 1)
    assert config.rope_theta == 10000 and config.rope_scaling_factor == 1
    assert config.tie_word_embeddings is True and config.attention_bias is False
    assert (config.max_position_embeddings, config.bos_token_id, config.eos_token_id) == (4096, 1, (2,))


@pytest.mark.parametrize("config", [MLA, GQA, *PRESETS.values(), replace(GQA, rope_scaling_factor=4.0,
                                                                         eos_token_id=(2, 3))])
def test_round_trip(tmp_path, config):
    assert BlockFFNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    write_config(tmp_path, config)
    assert BlockFFNConfig.from_file(tmp_path / "config.json") == config


@pytest.mark.parametrize("changes", [{"model_type": "blockffn"}, {"router_norm_type": "simple"},
                                     {"norm_after_router": "simple"}, {"hidden_act": "norm_silu"},
                                     {"expert_act_func": "norm_silu"}, {"moe_ffn_hidden_size": 64}])
def test_deco(changes):
    refused(changes, "DECO", *changes)


def test_other_models():
    refused({"ffn_type": "vanilla"}, "ffn_type", "dense MiniCPM")
    refused({"ffn_type": None}, "ffn_type", "dense MiniCPM")
    refused({"ffn_type": "moe"}, "ffn_type", "mixture of experts")
    refused({"ffn_type": None, "num_experts_per_tok": 2}, "mixture of experts")
    refused({"architectures": ["LlamaForCausalLM"]}, "architectures", "LlamaForCausalLM")
    refused({"architectures": ["LlamaForCausalLM"], "ffn_type": None}, "architectures", "LlamaForCausalLM")
    refused({"router_act": "sigmoid"}, "router_act", "relu", "sigmoid")
    refused({"hidden_act": "gelu"}, "hidden_act", "silu", "gelu")
    refused({"ffn_gated": True}, "ffn_gated")
    refused({"qk_norm": True}, "qk_norm")


def test_rope_scaling():
    linear = BlockFFNConfig.from_dict(RELEASED | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert linear.rope_scaling_factor == 2.0
    unscaled = BlockFFNConfig.from_dict(RELEASED | {"rope_scaling": {"rope_type": "default"}})
    assert unscaled.rope_scaling_factor == 1.0
    refused({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling", "dynamic", "linear")
    refused({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling", "yarn")
    refused({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor", "float")
    refused({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor", "'2'")
    refused({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling_factor", "positive")
    refused({"rope_scaling": "linear"}, "rope_scaling", "'linear'")
    refused({"rope_scaling": [1]}, "rope_scaling")


@pytest.mark.parametrize("name", REQUIRED)
def test_required(name):
    refused({name: None}, name, "missing")
    refused({name: 0}, name, "positive")
    refused({name: -8}, name, "positive")


@pytest.mark.parametrize("name", MLA_SIZES)
def test_mla_sizes_are_required(name):
    refused({name: None}, name, "positive")
    assert getattr(BlockFFNConfig.from_dict(RELEASED | {"attention_type": "vanilla"}), name) == 0


@pytest.mark.parametrize("name, value, expected", [
    ("hidden_size", "256", "int"), ("hidden_size", 256.0, "int"), ("hidden_size", True, "int"),
    ("hidden_size", [256], "int"), ("rms_norm_eps", "1e-5", "float"), ("rms_norm_eps", False, "float"),
    ("tie_word_embeddings", 1, "bool"), ("tie_word_embeddings", "true", "bool"), ("attention_type", 3, "str"),
    ("ffn_type", {"a": 1}, "str"), ("eos_token_id", "2", "int or list of int"), ("eos_token_id", [], "list of int"),
    ("eos_token_id", [2, None], "list of int"), ("scale_emb", 10**400, "double precision")])
def test_wrong_type(name, value, expected):
    refused({name: value}, f"'{name}'", expected)


@pytest.mark.parametrize("changes, name", [
    ({"num_experts": 1025}, "num_experts"), ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"expert_size": 12}, "expert_size"), ({"hidden_size": 240}, "hidden_size"),
    ({"num_attention_heads": 3}, "num_attention_heads"), ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"num_key_value_heads": 0}, "num_key_value_heads"), ({"num_key_value_heads": -1}, "num_key_value_heads"),
    ({"qk_rope_head_dim": 63}, "qk_rope_head_dim"), ({"bos_token_id": 512}, "bos_token_id"),
    ({"eos_token_id": [2, -1]}, "eos_token_id"), ({"attention_type": "mqa"}, "attention_type"),
    ({"norm_after_router": "softmax"}, "norm_after_router"), ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rope_theta": float("inf")}, "rope_theta"), ({"scale_depth": 0}, "scale_depth")])
def test_out_of_range(changes, name):
    refused(changes, f"'{name}'", "expected", "found")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"7", b'"x"', b"\xff", b"[" * 100000, b"null"])
def test_not_a_json_object(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="config.json: expected"):
        BlockFFNConfig.from_file(path)


def test_file_missing(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        BlockFFNConfig.from_file(tmp_path / "config.json")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                    max_leaves=5)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*RELEASED, "rope_scaling", "attention_bias", "rope_theta", "rope_scaling_factor"]), JSON)
def test_any_value_is_read_or_refused(name, value):
    try:
        config = BlockFFNConfig.from_dict(RELEASED | {name: value})
    except UserError:
        return
    assert BlockFFNConfig.from_dict(config.to_dict()) == config
