"""The registration with mlc_llm, against a stub of the interface that mlc_llm documents: its registries and base
classes, and what its commands do with them."""

import dataclasses
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import GQA, MLA, write_random_checkpoint
from tvm import relax
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from blockffn_mlc import mlc_plugin
from blockffn_mlc.builder import make_build
from blockffn_mlc.checkpoint import open_checkpoint
from blockffn_mlc.config import PRESETS, BlockFFNConfig
from blockffn_mlc.errors import UserError
from blockffn_mlc.layers import READ
from blockffn_mlc.model import Model as OurModel
from targets import find_target

FORMATS = {"q0f16": "no-quant", "q4f16_1": "group-quant"}
FUNCTIONS = {"embed", "prefill", "batch_prefill", "decode", "batch_decode", "batch_verify", "get_logits",
             "prefill_to_last_hidden_states", "batch_prefill_to_last_hidden_states", "decode_to_last_hidden_states",
             "batch_decode_to_last_hidden_states", "batch_verify_to_last_hidden_states", "create_paged_kv_cache"}


@dataclasses.dataclass
class ConfigBase:
    """As mlc_llm.support.config has it, where commands override fields through ``asdict``."""

    def asdict(self):
        result = dataclasses.asdict(self)
        result.pop("kwargs")
        return result


@dataclasses.dataclass
class ExternMapping:
    param_map: dict = dataclasses.field(default_factory=dict)
    map_func: dict = dataclasses.field(default_factory=dict)
    unused_params: set = dataclasses.field(default_factory=set)

    def add_mapping(self, map_from, map_to, func):
        self.param_map[map_from], self.map_func[map_from] = map_to, func


@dataclasses.dataclass
class QuantizeMapping:
    param_map: dict
    map_func: dict


@dataclasses.dataclass
class Model:
    name: str
    config: type
    model: object
    source: dict
    quantize: dict


class Cache(PagedKVCache):
    @staticmethod
    def create_generic(attn_kind, max_batch_size, max_total_seq_len, prefill_chunk_size, page_size,
                       support_sliding_window, num_hidden_layers, num_attention_heads, num_key_value_heads,
                       qk_head_dim, v_head_dim, rope_mode, rope_scale, rope_theta, dtype):
        sizes = (max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window)
        return Cache(_expr=relax.call_pure_packed("mlc.create_paged_kv_cache_generic", relax.ShapeExpr(sizes),
                                                  ty_args=relax.ObjectType()), _name="cache")


@pytest.fixture
def mlc(monkeypatch):
    """An installed mlc_llm, with nothing registered."""
    here = SimpleNamespace(models={}, presets={}, templates=set(), conversations={})
    registry = SimpleNamespace(register_conv_template=lambda template, override=False:
                               here.conversations.update({template["name"]: template}))
    for name, members in {
            "": {}, ".interface": {}, ".protocol": {}, ".support": {},
            ".conversation_template": {"ConvTemplateRegistry": registry},
            ".interface.gen_config": {"CONV_TEMPLATES": here.templates},
            ".loader": {"ExternMapping": ExternMapping, "QuantizeMapping": QuantizeMapping},
            ".model": {"MODEL_PRESETS": here.presets, "MODELS": here.models, "Model": Model},
            ".nn": {"PagedKVCache": Cache}, ".protocol.conversation_protocol": {"Conversation": dict},
            ".support.config": {"ConfigBase": ConfigBase}}.items():
        module = ModuleType(f"mlc_llm{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return here


def registered(mlc, config, folder):
    """The registered model, and its configuration as mlc_llm's commands make it of a checkpoint's."""
    mlc_plugin.register()
    model = mlc.models["blockffn"]
    read = model.config.from_file(folder / "config.json")
    changed = read.asdict() | {"context_window_size": 128}
    return model, model.config.from_dict(changed)


def checkpoint_of(config, folder):
    write_random_checkpoint(folder / "model", config)
    return config, folder / "model"


@pytest.fixture
def checkpoint(tmp_path):
    return checkpoint_of(GQA, tmp_path)


def test_everything_is_registered(mlc):
    mlc_plugin.register()
    mlc_plugin.register()
    assert set(mlc.models) == {"blockffn"} and set(mlc.templates) == {"blockffn"} == set(mlc.conversations)
    assert set(mlc.presets) == {f"blockffn_{name}" for name in PRESETS}
    model = mlc.models["blockffn"]
    assert set(model.source) == {"huggingface-safetensor", "huggingface-torch"}
    assert set(model.quantize) == set(FORMATS.values())
    for name, preset in mlc.presets.items():
        assert preset["model_type"] == "blockffn" and json.dumps(preset)
        config = model.config.from_dict(preset)
        assert BlockFFNConfig.from_dict(config.blockffn_config) == PRESETS[name.removeprefix("blockffn_")]
        assert (config.vocab_size, config.context_window_size, config.tensor_parallel_shards) == (
            preset["vocab_size"], 4096, 1)


def test_overrides_of_the_commands_reach_the_model(mlc, checkpoint):
    expected, folder = checkpoint
    _, config = registered(mlc, *checkpoint)
    assert config.context_window_size == 128 and config.kwargs == {}
    assert BlockFFNConfig.from_dict(config.blockffn_config) == expected
    with pytest.raises(UserError, match="--tensor-parallel-shards"):
        type(config).from_dict(config.asdict() | {"tensor_parallel_shards": 2})


@pytest.mark.parametrize(("original", "quantization"), [(GQA, "q4f16_1"), (MLA, "q0f16")], ids=["grouped", "latent"])
def test_the_compiler_gets_our_module_and_the_loader_our_weights(mlc, tmp_path, original, quantization):
    """As compile and convert_weight go: export, then every parameter from the file's tensors, then their check."""
    original, folder = checkpoint_of(original, tmp_path)
    model, config = registered(mlc, original, folder)
    form = SimpleNamespace(name=quantization, kind=FORMATS[quantization])
    built, quantize_map = model.quantize[form.kind](config, form)
    module, parameters, _ = built.export_tvm(spec=built.get_default_spec(), allow_extern=True)
    assert quantize_map == QuantizeMapping({}, {})
    assert {var.name_hint for var, function in module.functions.items()
            if isinstance(function, relax.Function)} == FUNCTIONS
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    mapping = model.source["huggingface-safetensor"](config, form)
    assert set(mapping.param_map) == {name for name, _ in parameters}
    assert {name for names in mapping.param_map.values() for name in names} == set(stored)
    ours = dict(OurModel(make_build(original, find_target("cpu"), quantization, 128, mlc=True)).named_parameters())
    source = open_checkpoint(folder)
    assert set(ours) == {"rope_table", *mapping.param_map}
    for name, parameter in parameters:
        names = mapping.param_map[name]
        assert names, f"{name}: MLC's loader skips parameters that come from no tensor"
        array = mapping.map_func[name](*(stored[given] for given in names))
        assert (array.shape, array.dtype) == (tuple(map(int, parameter.shape)), np.dtype(str(parameter.dtype)))
        assert array.dtype != np.float32, f"{name}: convert_weight would round it to bfloat16"
        np.testing.assert_array_equal(array, ours[name].attrs[READ](source))


def test_formats_that_would_lose_bits_are_refused(mlc, checkpoint):
    model, config = registered(mlc, *checkpoint)
    for name in ("q0f32", "q4f32_1", "q3f16_1"):
        with pytest.raises(UserError, match=f"--quantization {name}: expected one of q0f16, q4f16_1"):
            model.quantize["group-quant"](config, SimpleNamespace(name=name))


def test_without_mlc_llm_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlc_llm", None)
    with pytest.raises(UserError, match="mlc_llm cannot be used here .*build.py --mlc"):
        mlc_plugin.register()
