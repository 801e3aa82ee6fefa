"""BlockFFN for the commands of an installed mlc_llm (``gen_config``, ``convert_weight``, ``compile``): a registration
from outside, imported on demand (MLC contract, section 4). docs/mlc.md says what it does not do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .builder import make_build
from .chat_config import conversation
from .checkpoint.names import expected_shapes, spellings
from .config import PRESETS, BlockFFNConfig
from .errors import UserError
from .layers import READ, Build
from .mlc.metadata import MAX_SEQUENCES
from .mlc.plugin_model import PluginModel
from .target import Target

MODEL_TYPE = "blockffn"
QUANTIZATIONS = {"q0f16": "no-quant", "q4f16_1": "group-quant"}  # with MLC's name of the kind
_PREFILL_CHUNK = 512


def register(target: str = "cpu") -> None:
    """Let mlc_llm know model type, presets and conversation template "blockffn". ``target``: the name that our kernels
    are made for, as given to ``build.py --target``; ``--device`` of mlc_llm must be the same. Raises UserError
    without mlc_llm, or one whose interface is another."""
    from targets import find_target

    mlc = _interface()
    chosen = find_target(target)

    def model(config: Any, quantization: Any) -> PluginModel:
        return PluginModel(_build(config, quantization, chosen), mlc.create_generic)

    def quantize(config: Any, quantization: Any) -> tuple[PluginModel, Any]:
        return model(config, quantization), mlc.quantize_mapping({}, {})

    def source(config: Any, quantization: Any) -> Any:
        mapping = mlc.extern_mapping()
        for name, names, make in checkpoint_mapping(model(config, quantization)):
            mapping.add_mapping(name, names, make)
        return mapping

    mlc.models[MODEL_TYPE] = mlc.model(
        name=MODEL_TYPE, config=_config_class(mlc.config_base), model=lambda config: None,
        source=dict.fromkeys(("huggingface-safetensor", "huggingface-torch"), source),
        quantize=dict.fromkeys(QUANTIZATIONS.values(), quantize))
    for name, config in PRESETS.items():
        mlc.presets[f"{MODEL_TYPE}_{name}"] = config.to_dict() | {"model_type": MODEL_TYPE}
    template = conversation(1, [2], "</s>")
    mlc.template_names.add(template["name"])
    mlc.registry.register_conv_template(mlc.conversation(**template), override=True)


def checkpoint_mapping(model: PluginModel) -> list[tuple[str, list[str], Any]]:
    """Of every parameter of ``model`` its name, the checkpoint's tensors it is made of, and the function that makes
    it of these, as arrays in the released layout."""
    config, result = model.build.config, []
    stored = {name: spellings(config, name, shape)[0] for name, shape in expected_shapes(config).items()}
    for name, parameter in model.named_parameters():
        asked = _Asked(expected_shapes(config))
        parameter.attrs[READ](asked)

        def make(*arrays: np.ndarray, read: Any = parameter.attrs[READ], names: tuple = tuple(asked.names)) -> Any:
            return read(_Given({own: stored[own].to_canonical(np.asarray(array, np.float32), 0, stored[own].view[0])
                                for own, array in zip(names, arrays, strict=True)}))

        result.append((name, [stored[own].name for own in asked.names], make))
    return result


class _Asked:
    """A checkpoint of zeros that notes what is read of it."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self.names: list[str] = []

    def read(self, name: str) -> np.ndarray:
        self.names.append(name)
        return np.broadcast_to(np.float32(0), self._shapes[name])


class _Given:
    """Tensors at hand, as a checkpoint."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self._tensors = tensors

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name]


def _build(config: Any, quantization: Any, target: Target) -> Build:
    if quantization.name not in QUANTIZATIONS:
        raise UserError(f"--quantization {quantization.name}: expected one of {', '.join(QUANTIZATIONS)}: MLC's "
                        "convert_weight rounds float32 tensors to bfloat16, and our kernels know no other formats; "
                        "build.py makes q0f32 and q4f32_1")
    model = BlockFFNConfig.from_dict(config.blockffn_config)
    return make_build(model, target, quantization.name, config.context_window_size, config.prefill_chunk_size, mlc=True,
                      mlc_cache="mqa" if model.is_mla else "mha")


def _config_class(base: type) -> type:
    """MLC's view of a configuration: what its commands look at, and ours as a whole."""

    @dataclasses.dataclass
    class MlcConfig(base):
        blockffn_config: dict[str, Any]
        vocab_size: int
        context_window_size: int
        prefill_chunk_size: int
        tensor_parallel_shards: int = 1
        max_batch_size: int = MAX_SEQUENCES
        kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

        @classmethod
        def from_dict(cls, source: dict[str, Any]) -> Any:
            """Of a checkpoint's ``config.json``, or of what ``asdict`` gave. Raises UserError."""
            config = BlockFFNConfig.from_dict(source.get("blockffn_config", source | {"model_type": "minicpm"}))
            context = source.get("context_window_size") or config.max_position_embeddings
            if source.get("tensor_parallel_shards", 1) != 1:
                raise UserError("--tensor-parallel-shards: expected 1: our kernels know no other")
            return cls(config.to_dict(), config.vocab_size, context,
                       min(source.get("prefill_chunk_size") or _PREFILL_CHUNK, context),
                       max_batch_size=source.get("max_batch_size") or MAX_SEQUENCES)

        @classmethod
        def from_file(cls, source: Path) -> Any:
            return cls.from_dict(json.loads(Path(source).read_text(encoding="utf-8")))

    return MlcConfig


def _interface() -> SimpleNamespace:
    """What of mlc_llm is used. Raises UserError."""
    try:
        from mlc_llm.conversation_template import ConvTemplateRegistry
        from mlc_llm.interface.gen_config import CONV_TEMPLATES
        from mlc_llm.loader import ExternMapping, QuantizeMapping
        from mlc_llm.model import MODEL_PRESETS, MODELS, Model
        from mlc_llm.nn import PagedKVCache
        from mlc_llm.protocol.conversation_protocol import Conversation
        from mlc_llm.support.config import ConfigBase
    except Exception as error:  # with another TVM than its own, mlc_llm fails in many ways
        raise UserError(f"mlc_llm cannot be used here ({type(error).__name__}: {error}); install one for the TVM of "
                        "this environment, or build with build.py --mlc, which does not need it") from None
    return SimpleNamespace(models=MODELS, model=Model, presets=MODEL_PRESETS, config_base=ConfigBase,
                           registry=ConvTemplateRegistry, template_names=CONV_TEMPLATES, conversation=Conversation,
                           extern_mapping=ExternMapping, quantize_mapping=QuantizeMapping,
                           create_generic=PagedKVCache.create_generic)
