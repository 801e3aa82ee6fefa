"""Models for llama.cpp of a BlockFFN model's size, with random weights: shapes and formats decide its speed.

Three graphs that llama.cpp has, each with as many parameters per layer as it can be given of the BlockFFN model:

* ``llama``: dense, grouped-query attention, gated FFN;
* ``minicpm3``: the same latent attention, dense gated FFN;
* ``moe``: grouped-query attention, as many experts, each gated and of about an expert's size; the top k share of them
  that BlockFFN's routers choose on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from blockffn_mlc.checkpoint import expected_shapes
from blockffn_mlc.config import BlockFFNConfig
from blockffn_mlc.errors import UserError
from runtime_py.files import replacing

KINDS = ("llama", "minicpm3", "moe")
FORMATS = {"Q4_0": Type.Q4_0, "Q8_0": Type.Q8_0, "F16": Type.F16}
ACTIVE = 0.2  # share of the experts that a token uses: TLS is 80%
_BLOCK = 32  # weights that share a scale; every row is a multiple of it
_PERIOD = 1 << 23  # weights after which they repeat: quick to make, more than a core's cache holds
# Standard deviation of a block's codes when its bytes are random, and where the block's float16 scales are.
_CODES = {Type.Q4_0: (4.6, slice(0, 2)), Type.Q8_0: (74.0, slice(0, 2)), Type.Q6_K: (18.5 * 74.0, slice(208, 210))}


@dataclass(frozen=True)
class Tensor:
    """``shape`` as numpy has it: outputs, inputs."""

    name: str
    shape: tuple[int, ...]
    type: Type

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * size


@dataclass(frozen=True)
class GgufModel:
    """One of KINDS, of the size of ``config``, in one of FORMATS. Raises UserError for what llama.cpp has no graph or
    format for."""

    config: BlockFFNConfig
    kind: str
    format: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.format not in FORMATS:
            raise UserError(f"peer {self.kind}:{self.format}: expected one of {', '.join(KINDS)}, and behind a colon "
                            f"one of {', '.join(FORMATS)}")
        if self.kind == "minicpm3" and not self.config.is_mla:
            raise UserError("peer minicpm3: has latent attention, the model has none; leave it out")
        for size in (self.config.hidden_size, self.config.q_lora_rank, self.config.kv_lora_rank):
            if size % _BLOCK:
                raise UserError(f"peer {self.kind}:{self.format}: GGUF stores blocks of {_BLOCK} weights; a width of "
                                f"{size} is no multiple of it")

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.format}"

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: the model's own, or with MLA as many as make attention's size the nearest."""
        config = self.config
        if not config.is_mla:
            return config.num_key_value_heads
        hidden, heads = config.hidden_size, config.num_attention_heads
        goal = _attention_size(config) / hidden / 2 - hidden  # width of keys, and of values
        choices = [count for count in range(1, heads + 1) if heads % count == 0]
        return min(choices, key=lambda count: abs(count * config.head_dim - goal))

    @property
    def ffn_width(self) -> int:
        """Of the dense FFN, or of one expert: as many weights in three matrices as BlockFFN has in two, and dense as
        many as attention leaves of a layer."""
        config = self.config
        if self.kind == "moe":
            return -(-config.expert_size * 2 // 3 // _BLOCK) * _BLOCK
        layer = _attention_size(config) + 2 * config.num_experts * config.expert_size * config.hidden_size
        left = layer - (_attention_size(config) if self.kind == "minicpm3" else self._attention_size())
        return round(left / 3 / config.hidden_size / _BLOCK) * _BLOCK

    @property
    def experts_used(self) -> int:
        """By each token: the weights of ACTIVE of BlockFFN's experts."""
        config = self.config
        return max(1, round(ACTIVE * config.num_experts * 2 * config.expert_size / (3 * self.ffn_width)))

    def tensors(self) -> list[Tensor]:
        """All tensors of the file, in order."""
        config, matrix = self.config, FORMATS[self.format]
        hidden, width, experts = config.hidden_size, self.ffn_width, config.num_experts
        # As llama.cpp's own quantiser does for 4 bits: the head has more.
        head = Type.Q6_K if self.format == "Q4_0" and hidden % 256 == 0 else matrix
        found = [Tensor("token_embd.weight", (config.vocab_size, hidden), matrix)]
        for layer in range(config.num_hidden_layers):
            rows = [*self._attention(), ("attn_norm", (hidden,)), ("ffn_norm", (hidden,))]
            if self.kind == "moe":
                rows += [("ffn_gate_inp", (experts, hidden)), ("ffn_gate_exps", (experts, width, hidden)),
                         ("ffn_up_exps", (experts, width, hidden)), ("ffn_down_exps", (experts, hidden, width))]
            else:
                rows += [("ffn_gate", (width, hidden)), ("ffn_up", (width, hidden)), ("ffn_down", (hidden, width))]
            found += [Tensor(f"blk.{layer}.{name}.weight", shape,
                             Type.F32 if len(shape) == 1 or name == "ffn_gate_inp" else matrix) for name, shape in rows]
        found.append(Tensor("output_norm.weight", (hidden,), Type.F32))
        if not config.tie_word_embeddings:
            found.append(Tensor("output.weight", (config.vocab_size, hidden), head))
        return found

    def write(self, folder: Path) -> Path:
        """The file in ``folder``, written unless it is there. Raises UserError when it cannot be."""
        path = folder / f"{self.name}.gguf"
        if path.is_file():
            return path
        with replacing(path) as temporary:
            writer = gguf.GGUFWriter(temporary, "minicpm3" if self.kind == "minicpm3" else "llama")
            self._describe(writer)
            tensors = self.tensors()
            for tensor in tensors:
                writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, tensor.type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            rng = np.random.default_rng(0)
            for tensor in tensors:
                writer.write_tensor_data(random_weights(rng, tensor))
            writer.close()
        return path

    def _describe(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(self.ffn_width)
        writer.add_head_count(config.num_attention_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("none")
        mla = self.kind == "minicpm3"
        writer.add_head_count_kv(config.num_attention_heads if mla else self.kv_heads)
        writer.add_key_length(config.qk_head_dim if mla else config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.rope_dim if mla else config.head_dim)
        if mla:
            writer.add_q_lora_rank(config.q_lora_rank)
            writer.add_kv_lora_rank(config.kv_lora_rank)
        if self.kind == "moe":
            writer.add_expert_count(config.num_experts)
            writer.add_expert_used_count(self.experts_used)

    def _attention(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        config = self.config
        hidden, heads, value = config.hidden_size, config.num_attention_heads, config.head_dim
        if self.kind == "minicpm3":
            yield "attn_q_a", (config.q_lora_rank, hidden)
            yield "attn_q_a_norm", (config.q_lora_rank,)
            yield "attn_q_b", (heads * config.qk_head_dim, config.q_lora_rank)
            yield "attn_kv_a_mqa", (config.kv_lora_rank + config.qk_rope_head_dim, hidden)
            yield "attn_kv_a_norm", (config.kv_lora_rank,)
            yield "attn_kv_b", (heads * (config.qk_nope_head_dim + value), config.kv_lora_rank)
        else:
            yield "attn_q", (heads * value, hidden)
            yield "attn_k", (self.kv_heads * value, hidden)
            yield "attn_v", (self.kv_heads * value, hidden)
        yield "attn_output", (hidden, heads * value)

    def _attention_size(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in self._attention() if len(shape) == 2)


def _attention_size(config: BlockFFNConfig) -> int:
    """Weights of attention in a layer of the BlockFFN model."""
    shapes = expected_shapes(config)
    return sum(int(np.prod(shape)) for name, shape in shapes.items()
               if name.startswith("model.layers.0.self_attn.") and len(shape) == 2)


def random_weights(rng: np.random.Generator, tensor: Tensor) -> np.ndarray:
    """Stored values, about normal with standard deviation (inputs)^-0.5; a norm's are 1."""
    if len(tensor.shape) == 1:
        return np.ones(tensor.shape, np.float32)
    deviation, count = tensor.shape[-1] ** -0.5, int(np.prod(tensor.shape))
    if tensor.type in (Type.F32, Type.F16):
        dtype = np.float32 if tensor.type == Type.F32 else np.float16
        return np.resize((rng.standard_normal(min(count, _PERIOD), np.float32) * deviation).astype(dtype), tensor.shape)
    spread, scales = _CODES[tensor.type]
    block, size = gguf.GGML_QUANT_SIZES[tensor.type]
    blocks = np.frombuffer(rng.bytes(min(count, _PERIOD) // block * size), np.uint8).reshape(-1, size).copy()
    blocks[:, scales] = np.frombuffer(np.float16(deviation / spread).tobytes(), np.uint8)
    return np.resize(blocks, (count // block, size))
