"""The model's configuration: Hugging Face ``config.json`` in, one validated dataclass out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .errors import UserError

MAX_EXPERTS = 1024
MAX_POSITIONS = 1 << 20
_LARGEST_FLOAT = 3.4e38  # kernels compute in float32
MAX_LAYERS = 1024
EXPERT_SIZE_MULTIPLE = 8
HIDDEN_SIZE_MULTIPLE = 32
# MLA normalises its two latents with this epsilon whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True)
class BlockFFNConfig:
    """One BlockFFN model. Field names and defaults are those of the released ``config.json``.

    ``attention_type`` is "mla" or "vanilla" (grouped-query attention). The four MLA sizes are 0
    for a "vanilla" model, whatever its file says. ``num_key_value_heads`` 0 means as many as
    ``num_attention_heads``. ``rope_scaling_factor`` is the factor of linear RoPE scaling (1: none).
    Construction raises UserError naming the field, what it must be and what it is.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    num_experts: int
    expert_size: int
    ffn_type: str = "block"
    attention_type: str = "vanilla"
    num_key_value_heads: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    attention_bias: bool = False
    norm_after_router: str = "sum"
    norm_scale: float = 1.0
    rms_norm_eps: float = 1e-6
    scale_emb: float = 1.0
    dim_model_base: float = 1.0
    scale_depth: float = 1.0
    rope_theta: float = 10000.0
    rope_scaling_factor: float = 1.0
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 4096
    bos_token_id: int = 1
    eos_token_id: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        if self.num_key_value_heads == 0:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.attention_type == "vanilla":
            for name in _MLA_SIZES:
                object.__setattr__(self, name, 0)
        self._validate()

    @property
    def is_mla(self) -> bool:
        return self.attention_type == "mla"

    @property
    def head_dim(self) -> int:
        """Width of one value head, and of a whole query head under grouped-query attention."""
        return self.hidden_size // self.num_attention_heads

    @property
    def qk_head_dim(self) -> int:
        """Width of one query head before absorption."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_mla else self.head_dim

    @property
    def rope_dim(self) -> int:
        """Number of rotated dimensions per head."""
        return self.qk_rope_head_dim if self.is_mla else self.head_dim

    @property
    def residual_scale(self) -> float:
        """Factor of each residual branch: scale_depth / sqrt(num_hidden_layers)."""
        return self.scale_depth / self.num_hidden_layers**0.5

    @property
    def logit_scale(self) -> float:
        """Factor of the last hidden state before lm_head: dim_model_base / hidden_size."""
        return self.dim_model_base / self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; ``from_dict(to_dict())`` gives an equal configuration."""
        return asdict(self) | {
            "eos_token_id": list(self.eos_token_id),
            "model_type": "minicpm",
            "hidden_act": "silu",
            "router_act": "relu",
        }

    @classmethod
    def from_name(cls, name: str) -> BlockFFNConfig:
        """A published shape: small, medium, large, xlarge or 3b (any case, optional prefix)."""
        key = name.lower().removeprefix("blockffn-")
        if key not in PRESETS:
            raise UserError(f"model {name!r}: not a named shape; choose one of {', '.join(PRESETS)}")
        return PRESETS[key]

    @classmethod
    def from_file(cls, path: str | Path) -> BlockFFNConfig:
        """Read a Hugging Face ``config.json``. Raises UserError naming the file and field."""
        return cls.from_dict(read_config(Path(path), "a Hugging Face config.json"), str(path))

    @classmethod
    def from_dict(cls, raw: Any, where: str = "config.json") -> BlockFFNConfig:
        """Build from parsed JSON, refusing other models by name. ``where`` names the source in the UserError."""
        if not isinstance(raw, dict):
            raise UserError(f"{where}: expected a JSON object, found {type(raw).__name__}")
        _refuse_other_models(raw, where)
        values: dict[str, Any] = {}
        for field in fields(cls):
            if raw.get(field.name) is not None:
                values[field.name] = _typed(raw[field.name], field.name, str(field.type), where)
            elif field.name in _REQUIRED:
                raise UserError(f"{where}: field {field.name!r} is missing; it has no default")
        if values.get("num_key_value_heads") == 0:
            raise UserError(f"{where}: field 'num_key_value_heads': expected a positive integer, found 0")
        values["rope_scaling_factor"] = _rope_scaling_factor(raw, values, where)
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def _validate(self) -> None:
        for name in _REQUIRED + ("num_key_value_heads", "max_position_embeddings"):
            _expect(getattr(self, name) > 0, name, "a positive integer", getattr(self, name))
        for name in ("rms_norm_eps", "scale_emb", "dim_model_base", "scale_depth", "rope_theta",
                     "norm_scale", "rope_scaling_factor"):
            value = getattr(self, name)
            _expect(0 < value <= _LARGEST_FLOAT, name, "a positive number within float32", value)
        _expect(self.max_position_embeddings <= MAX_POSITIONS, "max_position_embeddings",
                f"at most {MAX_POSITIONS}", self.max_position_embeddings)
        _expect(self.attention_type in ("mla", "vanilla"), "attention_type", '"mla" or "vanilla"', self.attention_type)
        _expect(self.ffn_type in ("block", "block_linear"), "ffn_type", '"block" or "block_linear"', self.ffn_type)
        _expect(self.norm_after_router in ("rms", "sum", "none"), "norm_after_router",
                '"rms", "sum" or "none"', self.norm_after_router)
        _expect(self.num_hidden_layers <= MAX_LAYERS, "num_hidden_layers", f"at most {MAX_LAYERS}",
                self.num_hidden_layers)
        _expect(self.num_experts <= MAX_EXPERTS, "num_experts", f"at most {MAX_EXPERTS}", self.num_experts)
        _expect(self.expert_size % EXPERT_SIZE_MULTIPLE == 0, "expert_size",
                f"a multiple of {EXPERT_SIZE_MULTIPLE}", self.expert_size)
        _expect(self.hidden_size % HIDDEN_SIZE_MULTIPLE == 0, "hidden_size",
                f"a multiple of {HIDDEN_SIZE_MULTIPLE}", self.hidden_size)
        _expect(self.hidden_size % self.num_attention_heads == 0, "num_attention_heads",
                f"a divisor of hidden_size {self.hidden_size}", self.num_attention_heads)
        _expect(self.num_attention_heads % self.num_key_value_heads == 0, "num_key_value_heads",
                f"a divisor of num_attention_heads {self.num_attention_heads}", self.num_key_value_heads)
        if self.is_mla:
            for name in _MLA_SIZES:
                _expect(getattr(self, name) > 0, name, "a positive integer (MLA has no usable default)",
                        getattr(self, name))
        _expect(self.rope_dim % 2 == 0, "qk_rope_head_dim" if self.is_mla else "num_attention_heads",
                "an even number of rotated dimensions", self.rope_dim)
        for name, tokens in (("bos_token_id", (self.bos_token_id,)), ("eos_token_id", self.eos_token_id)):
            for token in tokens:
                _expect(0 <= token < self.vocab_size, name, f"a token below vocab_size {self.vocab_size}", token)


_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "num_experts", "expert_size")
_MLA_SIZES = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
# Fields, or values of fields, that only DECO has.
_DECO_FIELDS = ("router_norm_type", "moe_ffn_hidden_size", "expert_act_func")
_DECO_VALUES = (("model_type", "blockffn"), ("norm_after_router", "simple"), ("hidden_act", "norm_silu"),
                ("hidden_act", "NormSiLU"))


def read_config(path: Path, expected: str) -> Any:
    """The parsed ``config.json`` at ``path``. Raises UserError, with ``expected`` where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {expected}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: expected a config.json, found a file not readable as JSON ({error})") from None


def _expect(ok: bool, name: str, expected: str, found: Any) -> None:
    if not ok:
        raise UserError(f"field {name!r}: expected {expected}, found {found!r}")


def _typed(value: Any, name: str, kind: str, where: str) -> Any:
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            kind = "a number of double precision"
    if (kind == "bool" and isinstance(value, bool)) or (kind == "str" and isinstance(value, str)):
        return value
    if kind.startswith("tuple"):
        tokens = value if isinstance(value, (list, tuple)) else [value]
        if tokens and all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
            return tuple(tokens)
        kind = "int or list of int"
    raise UserError(f"{where}: field {name!r}: expected {kind}, found {value!r}")


def _refuse_other_models(raw: dict[str, Any], where: str) -> None:
    """Refuse, by name, what looks like BlockFFN but computes something else."""
    deco = [name for name in _DECO_FIELDS if name in raw]
    deco += [name for name, value in _DECO_VALUES if raw.get(name) == value]
    if deco:
        raise UserError(f"{where}: field {deco[0]!r}: found {raw[deco[0]]!r}: this is DECO (BlockFFN-v2), a different "
                        "model; expected a BlockFFN checkpoint of MiniCPMForCausalLM with ffn_type 'block' or "
                        "'block_linear'")
    architectures = raw.get("architectures", ["MiniCPMForCausalLM"])
    if architectures != ["MiniCPMForCausalLM"]:
        raise UserError(f"{where}: field 'architectures': expected ['MiniCPMForCausalLM'], the class of BlockFFN's "
                        f"checkpoints, found {architectures!r}")
    if raw.get("ffn_type") == "moe" or (raw.get("ffn_type") is None and "num_experts_per_tok" in raw):
        raise UserError(f"{where}: field 'ffn_type': this is a classic mixture of experts with top-k routing; "
                        "expected 'block' or 'block_linear'")
    if raw.get("ffn_type") in (None, "vanilla"):
        raise UserError(f"{where}: field 'ffn_type': expected 'block' or 'block_linear', found "
                        f"{raw.get('ffn_type')!r}: a dense MiniCPM model has no experts to skip")
    for name, supported in (("hidden_act", "silu"), ("router_act", "relu")):
        if raw.get(name, supported) != supported:
            raise UserError(f"{where}: field {name!r}: expected {supported!r}, found {raw[name]!r}")
    if raw.get("ffn_gated") or raw.get("qk_norm"):
        name = "ffn_gated" if raw.get("ffn_gated") else "qk_norm"
        raise UserError(f"{where}: field {name!r}: expected false, found {raw[name]!r}")


def _rope_scaling_factor(raw: dict[str, Any], values: dict[str, Any], where: str) -> float:
    scaling = raw.get("rope_scaling")
    if scaling is None:
        # Configurations that this package wrote carry the factor itself.
        return values.get("rope_scaling_factor", 1.0)
    kind = scaling.get("type", scaling.get("rope_type")) if isinstance(scaling, dict) else None
    if kind == "default":
        return 1.0
    if kind == "dynamic":
        raise UserError(f"{where}: field 'rope_scaling': 'dynamic' scaling has no well-defined meaning with cached "
                        "keys; expected null or {'type': 'linear', 'factor': F}")
    if kind != "linear":
        raise UserError(f"{where}: field 'rope_scaling': expected null or {{'type': 'linear', 'factor': F}}, "
                        f"found {scaling!r}")
    return _typed(scaling.get("factor"), "rope_scaling.factor", "float", where)


_SMALL = BlockFFNConfig(
    hidden_size=768, num_hidden_layers=16, num_attention_heads=6, vocab_size=122753, num_experts=48, expert_size=64,
    ffn_type="block_linear", attention_type="mla", q_lora_rank=768, kv_lora_rank=256, qk_nope_head_dim=128,
    qk_rope_head_dim=64, norm_after_router="rms", rms_norm_eps=1e-5, scale_emb=12.0, dim_model_base=256.0,
    scale_depth=1.4, tie_word_embeddings=False)
PRESETS: dict[str, BlockFFNConfig] = {
    "small": _SMALL,
    "medium": replace(_SMALL, hidden_size=1280, expert_size=128, num_experts=40, num_hidden_layers=27,
                      num_attention_heads=10, num_key_value_heads=10),
    "large": replace(_SMALL, hidden_size=1536, expert_size=128, num_experts=48, num_hidden_layers=32,
                     num_attention_heads=12, num_key_value_heads=12),
    "xlarge": replace(_SMALL, hidden_size=1792, expert_size=128, num_experts=56, num_hidden_layers=35,
                      num_attention_heads=14, num_key_value_heads=14),
    "3b": replace(_SMALL, hidden_size=2048, expert_size=128, num_experts=128, num_hidden_layers=36,
                  num_attention_heads=16, num_key_value_heads=4, attention_type="vanilla", vocab_size=73448,
                  tie_word_embeddings=True),
}
