"""``build.py --emit onnx``: a folder with the model as ONNX, its weights beside it, configuration and tokenizer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..chat_config import copy_tokenizer
from ..config import BlockFFNConfig
from ..errors import UserError
from ..progress import Progress
from ..quantization import QUANTIZATIONS
from ..shards import Source
from ..staging import ONNX_MODEL, ONNX_PRODUCER, staging_folder
from .graph import Graph, Weight
from .model import build_graph, cache_sizes

WEIGHTS = f"{ONNX_MODEL}_data"
CONFIG = "config.json"
# Wide support: ONNX Runtime from 1.12 on.
OPSET, IR_VERSION = 17, 8
_FORMATS = ("q0f32", "q0f16")
_ALIGNMENT = 4096  # so that runtimes can map every tensor
_LARGE = 1024  # bytes from which on a tensor is beside the model


def plan_onnx(config: BlockFFNConfig, quantization: str) -> Graph:
    """The graph of a model in one of MLC's float formats. Raises UserError for any other format."""
    if quantization not in _FORMATS:
        reason = "ONNX has no operator for MLC's 4-bit codes" if quantization in QUANTIZATIONS else "unknown format"
        choices = ", ".join(_FORMATS)
        raise UserError(f"--quantization {quantization}: {reason}; with --emit onnx choose one of {choices}")
    return build_graph(config, QUANTIZATIONS[quantization])


def summary(graph: Graph, config: BlockFFNConfig, quantization: str) -> dict[str, Any]:
    """What the model takes and gives, ``N`` standing for every layer, and its size in bytes."""
    kinds = list(cache_sizes(config))
    return {"format": f"ONNX, opset {OPSET}", "quantization": quantization,
            "inputs": ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.N.{kind}" for kind in kinds)],
            "outputs": ["logits", *(f"present.N.{kind}" for kind in kinds), "router_scores"],
            "layers": config.num_hidden_layers, "nodes": len(graph.nodes), "tensors": len(graph.weights),
            "weight_bytes": sum(weight.nbytes for weight in graph.weights)}


def write_onnx(graph: Graph, config: BlockFFNConfig, source: Source, folder: Path | None, out: Path,
               progress: Progress) -> None:
    """Write the folder ``out`` in one step: nothing of it is there before all of it is. ``folder``: the checkpoint's,
    for the tokenizer (None: there is none). Raises UserError, OSError."""
    out = Path(os.path.abspath(out))
    with staging_folder(out, "") as (staging, _):
        with progress.bytes("weights", sum(weight.nbytes for weight in graph.weights)) as advance, \
                open(staging / WEIGHTS, "wb") as data:
            initializers = []
            for weight in graph.weights:
                values = np.ascontiguousarray(weight.read(source), weight.dtype)
                initializers.append(_initializer(weight, values, data))
                advance(weight.nbytes)
        onnx.save(_model(graph, initializers), staging / ONNX_MODEL)
        onnx.checker.check_model(str(staging / ONNX_MODEL))
        (staging / CONFIG).write_text(json.dumps(_config_fields(config), indent=1), encoding="utf-8")
        copy_tokenizer(folder, staging)


def _config_fields(config: BlockFFNConfig) -> dict[str, Any]:
    """``config.json`` as Hugging Face's releases spell it."""
    fields = config.to_dict() | {"architectures": ["MiniCPMForCausalLM"]}
    if fields.pop("rope_scaling_factor") != 1.0:
        fields["rope_scaling"] = {"type": "linear", "factor": config.rope_scaling_factor}
    return fields


def _initializer(weight: Weight, values: np.ndarray, data: Any) -> onnx.TensorProto:
    """``values`` in the model, or appended to the file ``data`` if they are large."""
    tensor = TensorProto(name=weight.name, dims=weight.shape,
                         data_type=helper.np_dtype_to_tensor_dtype(values.dtype))
    if values.nbytes < _LARGE:
        tensor.raw_data = values.tobytes()
        return tensor
    offset = -(-data.tell() // _ALIGNMENT) * _ALIGNMENT
    data.seek(offset)
    data.write(values.data)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _model(graph: Graph, initializers: list[onnx.TensorProto]) -> onnx.ModelProto:
    proto = helper.make_graph(graph.nodes, "blockffn", graph.inputs, graph.outputs,
                              [*graph.constants.values(), *initializers])
    return helper.make_model(proto, producer_name=ONNX_PRODUCER, ir_version=IR_VERSION,
                             opset_imports=[helper.make_opsetid("", OPSET)])
