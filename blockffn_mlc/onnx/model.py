"""BlockFFN as an ONNX graph: dense, every expert computed and multiplied by its router score, which is zero for an
inactive one; with the cache as arguments and results, named as Hugging Face's exports name them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from schedules.rope_table import rope_table

from ..checkpoint import expected_shapes
from ..config import LATENT_NORM_EPS, BlockFFNConfig
from ..quantization import Quantization, check_range
from .graph import Graph, Weight

BATCH, TOKENS, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {TOKENS}"


def build_graph(config: BlockFFNConfig, quantization: Quantization) -> Graph:
    """The model as a function, with B sequences, T new tokens, S tokens in all, those cached before included:

    ``input_ids``, ``position_ids`` int64 [B, T]; ``attention_mask`` int64 [B, S], 0 for padding; per layer the cache
    ``past_key_values.N.key`` and ``.value`` [B, K, S - T, width], or ``.latent`` [B, 1, S - T, rank + rope_dim] with
    MLA. Results: ``logits`` float32 [B, T, V]; the cache grown by T, ``present.N.key`` ...; ``router_scores`` float32
    [L, B, T, E], after the router's norm.
    """
    return _Model(config, quantization).graph


class _Model:
    """Fills ``graph``. In the docstrings: H hidden size, G query heads for each of K heads in the cache."""

    def __init__(self, config: BlockFFNConfig, quantization: Quantization) -> None:
        self.config = config
        self.shapes = expected_shapes(config)
        self.cache_dtype = quantization.cache_dtype
        self.graph = g = Graph(quantization.model_dtype)
        ids = g.input("input_ids", "int64", BATCH, TOKENS)
        mask = g.input("attention_mask", "int64", BATCH, TOTAL)
        positions = g.input("position_ids", "int64", BATCH, TOKENS)
        g.output("logits", "float32", BATCH, TOKENS, config.vocab_size)
        self.past = [self._cached(layer) for layer in range(config.num_hidden_layers)]
        g.output("router_scores", "float32", config.num_hidden_layers, BATCH, TOKENS, config.num_experts)
        self.hidden_tokens = self._hidden_tokens(ids, mask)
        self.cos, self.sin = self._rotation(positions)
        self._layers(ids)

    def _layers(self, ids: str) -> None:
        config, g = self.config, self.graph
        embedding = self._weight("model.embed_tokens.weight")
        x = self._scaled(g.call("Gather", embedding, ids), config.scale_emb)
        all_scores = []
        for layer in range(config.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            g.scope = f"{prefix}self_attn."
            attention = self._mla if config.is_mla else self._gqa
            branch = attention(g.scope, self._norm(f"{prefix}input_layernorm", x), layer)
            x = g.call("Add", x, self._scaled(branch, config.residual_scale))
            g.scope = f"{prefix}mlp."
            branch, scores = self._ffn(g.scope, self._norm(f"{prefix}post_attention_layernorm", x))
            x = g.call("Add", x, self._scaled(branch, config.residual_scale))
            all_scores.append(g.unsqueeze(scores, 0))
        g.scope = ""
        hidden = self._scaled(self._norm("model.norm", x), config.logit_scale)
        head = g.transpose(embedding, 1, 0) if config.tie_word_embeddings else self._matrix("lm_head")
        g.result("logits", g.call("MatMul", hidden, head))
        g.result("router_scores", g.concat(*all_scores, axis=0))

    def _cached(self, layer: int) -> dict[str, str]:
        """The cached tensors of a layer by kind, arguments and results."""
        g, past = self.graph, {}
        for kind, (heads, width) in cache_sizes(self.config).items():
            past[kind] = g.input(f"past_key_values.{layer}.{kind}", self.cache_dtype, BATCH, heads, PAST, width)
            g.output(f"present.{layer}.{kind}", self.cache_dtype, BATCH, heads, TOTAL, width)
        return past

    def _grow(self, layer: int, kind: str, new: str) -> str:
        """The cache [B, K, S, width] with the rows ``new`` behind those of before, as float32."""
        g = self.graph
        rows = g.float16(new) if self.cache_dtype == "float16" else new
        cache = g.concat(self.past[layer][kind], rows, axis=2)
        g.result(f"present.{layer}.{kind}", cache)
        return g.float32(cache) if self.cache_dtype == "float16" else cache

    def _hidden_tokens(self, ids: str, mask: str) -> str:
        """[B, 1, 1, T, S]: what is added to attention scores: 0 for tokens that a token sees, else the least float."""
        g = self.graph
        no_later = g.call("GreaterOrEqual", g.unsqueeze(self._tokens_behind(mask), 1),
                          g.unsqueeze(self._tokens_behind(ids), 2))
        seen = g.call("And", no_later, g.unsqueeze(g.call("Greater", mask, g.constant(0, "int64")), 1))
        return g.call("Where", g.unsqueeze(seen, 1, 2), g.constant(0.0), g.constant(np.finfo(np.float32).min))

    def _tokens_behind(self, tokens: str) -> str:
        """For each of ``tokens`` [B, n] how many follow it, computed from data: importers lose track of axes whose
        lengths are computed from other axes' lengths."""
        g = self.graph
        ones = g.call("Cast", g.call("Equal", tokens, tokens), to=TensorProto.INT64)
        return g.call("CumSum", ones, g.constant(1, "int64"), exclusive=1, reverse=1)

    def _rotation(self, positions: str) -> list[str]:
        """cos and sin [B, 1, T, rope_dim / 2]; the angles are those of our kernels, bit for bit."""
        config, g = self.config, self.graph
        table = rope_table(config.max_position_embeddings, config.rope_dim, config.rope_theta,
                           config.rope_scaling_factor)
        g.weights.append(Weight("rope_table", table.shape, "float32", lambda checkpoint: table))
        rows = g.unsqueeze(g.call("Gather", "rope_table", positions), 1)
        return g.split(rows, config.rope_dim // 2, config.rope_dim // 2)

    def _weight(self, name: str) -> str:
        """A tensor as the checkpoint has it."""
        return self._made(name, self.shapes[name], name, lambda values: values)

    def _made(self, name: str, shape: tuple[int, ...], source: str, make: Any) -> str:
        """A weight that ``make`` turns the checkpoint's tensor ``source`` into."""
        def read(checkpoint: Any) -> np.ndarray:
            values = checkpoint.read(source)
            check_range(values, self.graph.weight_dtype, source)
            return make(values)

        return self.graph.weight(name, shape, read)

    def _matrix(self, name: str) -> str:
        """A matrix of the checkpoint as MatMul takes it: [inputs, outputs]."""
        name = f"{name}.weight"
        return self._made(name, self.shapes[name][::-1], name, lambda values: values.T)

    def _linear(self, name: str, x: str) -> str:
        """[..., inputs] to [..., outputs], with the bias if the checkpoint has one."""
        product = self.graph.call("MatMul", x, self._matrix(name))
        bias = f"{name}.bias"
        return self.graph.call("Add", product, self._weight(bias)) if bias in self.shapes else product

    def _scaled(self, x: str, factor: float) -> str:
        return self.graph.call("Mul", x, self.graph.constant(factor))

    def _norm(self, name: str, x: str, eps: float | None = None) -> str:
        """x / sqrt(mean of x^2 over the last axis + eps) * weight, in the form that runtimes know and fuse."""
        g = self.graph
        eps = self.config.rms_norm_eps if eps is None else eps
        mean = g.call("ReduceMean", g.call("Pow", x, g.constant(2.0)), axes=[-1])
        root = g.call("Sqrt", g.call("Add", mean, g.constant(eps)))
        return g.call("Mul", g.call("Div", x, root), self._weight(f"{name}.weight"))

    def _heads(self, x: str, heads: int, width: int) -> str:
        """[B, T, heads * width] to [B, heads, T, width]."""
        return self.graph.transpose(self.graph.reshape(x, 0, 0, heads, width), 0, 2, 1, 3)

    def _rotate(self, x: str) -> str:
        """Half-split rotary embedding of [B, heads, T, rope_dim]."""
        g, half = self.graph, self.config.rope_dim // 2
        low, high = g.split(x, half, half)
        turned = (g.call("Sub", g.call("Mul", low, self.cos), g.call("Mul", high, self.sin)),
                  g.call("Add", g.call("Mul", high, self.cos), g.call("Mul", low, self.sin)))
        return g.concat(*turned, axis=-1)

    def _mla(self, prefix: str, x: str, layer: int) -> str:
        """Multi-head latent attention, [B, T, H] to [B, T, H], in the absorbed form: keys are the cached latents and
        the rotated part that all heads share; queries are brought to the latents, and the latents' mean to values."""
        config, g = self.config, self.graph
        nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.head_dim
        heads, rank = config.num_attention_heads, config.kv_lora_rank
        q = self._norm(f"{prefix}q_a_layernorm", self._linear(f"{prefix}q_a_proj", x), LATENT_NORM_EPS)
        q_nope, q_rope = g.split(self._heads(self._linear(f"{prefix}q_b_proj", q), heads, nope + rope), nope, rope)
        latent, k_rope = g.split(self._linear(f"{prefix}kv_a_proj_with_mqa", x), rank, rope)
        latent = g.unsqueeze(self._norm(f"{prefix}kv_a_layernorm", latent, LATENT_NORM_EPS), 1)
        cache = self._grow(layer, "latent", g.concat(latent, self._rotate(g.unsqueeze(k_rope, 1)), axis=-1))
        source = f"{prefix}kv_b_proj.weight"

        def by_head(values: np.ndarray) -> np.ndarray:
            return values.reshape(heads, nope + value, rank)

        to_latent = self._made(f"{source}.key", (heads, nope, rank), source, lambda values: by_head(values)[:, :nope])
        to_value = self._made(f"{source}.value", (heads, rank, value), source,
                              lambda values: by_head(values)[:, nope:].transpose(0, 2, 1))
        q = g.concat(g.call("MatMul", q_nope, to_latent), self._rotate(q_rope), axis=-1)
        mean = self._attend(g.unsqueeze(q, 1), cache, g.split(cache, rank, rope)[0])
        mean = g.reshape(mean, 0, heads, -1, rank)
        return self._project(prefix, g.call("MatMul", mean, to_value))

    def _gqa(self, prefix: str, x: str, layer: int) -> str:
        """Grouped-query attention, [B, T, H] to [B, T, H]."""
        config, g = self.config, self.graph
        heads, cached, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        q = self._rotate(self._heads(self._linear(f"{prefix}q_proj", x), heads, width))
        k = self._rotate(self._heads(self._linear(f"{prefix}k_proj", x), cached, width))
        v = self._heads(self._linear(f"{prefix}v_proj", x), cached, width)
        k, v = self._grow(layer, "key", k), self._grow(layer, "value", v)
        mean = self._attend(g.reshape(q, 0, cached, heads // cached, -1, width), k, v)
        return self._project(prefix, g.reshape(mean, 0, heads, -1, width))

    def _attend(self, q: str, k: str, v: str) -> str:
        """Queries [B, K, G, T, width], keys and values [B, K, S, ...]: the values' means [B, K, G, T, ...]."""
        g = self.graph
        scores = g.call("MatMul", q, g.unsqueeze(g.transpose(k, 0, 1, 3, 2), 2))
        scores = g.call("Add", self._scaled(scores, self.config.qk_head_dim**-0.5), self.hidden_tokens)
        return g.call("MatMul", g.call("Softmax", scores, axis=-1), g.unsqueeze(v, 2))

    def _project(self, prefix: str, x: str) -> str:
        """[B, heads, T, head_dim] to [B, T, H]."""
        width = self.config.num_attention_heads * self.config.head_dim
        return self._linear(f"{prefix}o_proj", self.graph.reshape(self.graph.transpose(x, 0, 2, 1, 3), 0, 0, width))

    def _ffn(self, prefix: str, x: str) -> tuple[str, str]:
        """The sum over experts of down_e(silu(up_e(x)) * A_e), [B, T, H], and A [B, T, E]."""
        config, g = self.config, self.graph
        experts, size, hidden = config.num_experts, config.expert_size, config.hidden_size
        scores = g.call("Relu", self._linear(f"{prefix}router_proj", x))
        if config.norm_after_router == "rms":
            scores = self._norm(f"{prefix}router_norm", scores)
        elif config.norm_after_router == "sum":
            total = self._scaled(g.call("ReduceSum", scores, g.constant([-1], "int64")), config.norm_scale)
            scores = g.call("Div", scores, g.call("Add", total, g.constant(1e-5)))
        up = self._made(f"{prefix}up_proj", (hidden, experts * size), f"{prefix}up_proj",
                        lambda values: values.reshape(experts * size, hidden).T)
        down = self._made(f"{prefix}down_proj", (experts * size, hidden), f"{prefix}down_proj",
                          lambda values: values.transpose(0, 2, 1).reshape(experts * size, hidden))
        inner = g.call("MatMul", x, up)
        inner = g.reshape(g.call("Mul", inner, g.call("Sigmoid", inner)), 0, 0, experts, size)
        inner = g.call("Mul", inner, g.unsqueeze(scores, -1))
        return g.call("MatMul", g.reshape(inner, 0, 0, experts * size), down), scores


def cache_sizes(config: BlockFFNConfig) -> dict[str, tuple[int, int]]:
    """What one layer caches of a token: kind -> (heads, width)."""
    if config.is_mla:
        return {"latent": (1, config.kv_lora_rank + config.qk_rope_head_dim)}
    return dict.fromkeys(("key", "value"), (config.num_key_value_heads, config.head_dim))
