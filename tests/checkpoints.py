"""Small random checkpoints for tests, in every layout, file format and dtype that releases and converters use."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from blockffn_mlc.checkpoint.draft import expected_shapes
from blockffn_mlc.config import BlockFFNConfig
from blockffn_mlc.draft_config import DraftConfig
from blockffn_mlc.random_model import RandomCheckpoint

MLA = BlockFFNConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=96, num_experts=12, expert_size=16,
    attention_type="mla", q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=32, qk_rope_head_dim=8,
    norm_after_router="rms", rms_norm_eps=1e-5, scale_emb=12.0, dim_model_base=16.0, scale_depth=1.4,
    tie_word_embeddings=False, max_position_embeddings=256)
GQA = replace(MLA, attention_type="vanilla", num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
              ffn_type="block_linear")
VARIANTS = {
    "mla, router norm sum, bias, 130 experts": replace(
        MLA, norm_after_router="sum", norm_scale=2.0, attention_bias=True, num_experts=130, expert_size=8),
    "mla, router norm none, tied, one expert, odd sizes": replace(
        MLA, norm_after_router="none", tie_word_embeddings=True, num_experts=1, expert_size=40, q_lora_rank=21,
        kv_lora_rank=13, qk_nope_head_dim=5, qk_rope_head_dim=6, vocab_size=97),
    "mla, rms, large eps, linear rope scaling, one head": replace(
        MLA, rms_norm_eps=0.05, num_attention_heads=1, num_key_value_heads=1, rope_scaling_factor=4.0, rope_theta=500.0,
        vocab_size=45, num_hidden_layers=1),
    "gqa, router norm none, bias, 3 experts": replace(
        GQA, norm_after_router="none", attention_bias=True, num_experts=3, expert_size=24),
    "gqa, router norm sum, linear rope scaling, untied, one kv head": replace(
        GQA, norm_after_router="sum", hidden_size=96, num_attention_heads=3, num_key_value_heads=1,
        rope_scaling_factor=2.0, tie_word_embeddings=False, num_experts=20, expert_size=128),
    "gqa, rms, 1024 experts": replace(
        GQA, num_experts=1024, expert_size=8, hidden_size=32, num_hidden_layers=1),
    "gqa, rms, one expert, as many kv heads": replace(
        GQA, num_experts=1, num_attention_heads=2, num_key_value_heads=2, hidden_size=32, scale_emb=1.0,
        dim_model_base=1.0, scale_depth=1.0),
}
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


def write_random_checkpoint(folder, config, seed=0, layout=None, format="safetensors", dtype="bfloat16"):
    """Write ``config.json`` and random weights; return the canonical float32 tensors that a reader must find.

    layout: block, block_linear, experts or megablocks (default: the configuration's ``ffn_type``).
    format: safetensors, sharded, bin or sharded_bin. dtype: bfloat16, float16 or float32.
    """
    if layout in ("block", "block_linear"):
        config = replace(config, ffn_type=layout)
    source = RandomCheckpoint(config, str(seed))
    tensors = {name: source.read(name).astype(DTYPES[dtype]) for name in source.expected}
    stored = dict(stored_tensor(config, name, value, layout or config.ffn_type) for name, value in tensors.items())
    write_config(folder, config)
    write_tensors(folder, stored, format)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def stored_tensor(config, name, value, layout):
    """Name and value under which ``layout`` stores a canonical tensor."""
    experts, size, hidden = config.num_experts, config.expert_size, config.hidden_size
    up = name.endswith("mlp.up_proj")
    if not up and not name.endswith("mlp.down_proj") or layout == "block":
        return name, value
    if layout == "block_linear":
        if up:
            return name, value.reshape(experts * size, hidden)
        return name, np.concatenate(list(value), axis=1)
    if layout == "experts":
        return name.replace("mlp.", "mlp.experts.") + ".weight", value
    rows = value if up else value.swapaxes(1, 2)
    return name.replace("mlp.", "mlp.mlp."), np.concatenate(list(rows), axis=0)


def write_config(folder, config, **changes):
    """Write ``config.json`` as Hugging Face would; ``changes`` replace or add fields."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    fields = config.to_dict() | {"architectures": ["MiniCPMForCausalLM"]}
    if fields.pop("rope_scaling_factor") != 1.0:
        fields["rope_scaling"] = {"type": "linear", "factor": config.rope_scaling_factor}
    (Path(folder) / "config.json").write_text(json.dumps(fields | changes))


def write_tensors(folder, tensors, format="safetensors"):
    """Write stored tensors (any dtype) as one file, or as two shards with an index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind, suffix = ("pytorch_model", "bin") if format.endswith("bin") else ("model", "safetensors")
    if not format.startswith("sharded"):
        write_file(folder / f"{kind}.{suffix}", tensors)
        return
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        shard = f"{kind}-{number:05d}-of-00002.{suffix}"
        write_file(folder / shard, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(value.nbytes for value in tensors.values())}, "weight_map": weight_map}
    (folder / f"{kind}.{suffix}.index.json").write_text(json.dumps(index))


def write_file(path, tensors):
    """One weights file, its format chosen by the suffix."""
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
        return
    import torch

    torch.save({name: _to_torch(torch, value) for name, value in tensors.items()}, path)


def _to_torch(torch, value):
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def write_random_draft(folder, target, seed=0, layers=1, heads=4, kv_heads=2, head_dim=16, inner=96, bias=True,
                       frequent=None, format="safetensors", dtype="bfloat16"):
    """Write a random EAGLE draft of the model ``target`` (a configuration), with the list of token ids ``frequent`` if
    there is to be one; return its float32 tensors."""
    config = DraftConfig(target.hidden_size, layers, inner, heads, kv_heads, head_dim)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_shapes(config, bias).items():
        values = rng.standard_normal(shape, np.float32)
        values = values * shape[1]**-0.5 if len(shape) == 2 else (0 if name == "fc.bias" else 1) + 0.1 * values
        tensors[name] = values.astype(DTYPES[dtype])
    write_tensors(folder, tensors, format)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    (Path(folder) / "config.json").write_text(json.dumps(fields | {"vocab_size": target.vocab_size}))
    if frequent is not None:
        (Path(folder) / f"freq_{len(frequent)}.json").write_text(json.dumps([int(token) for token in frequent]))
    return {name: value.astype(np.float32) for name, value in tensors.items()}
