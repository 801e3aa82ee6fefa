"""The EAGLE draft model's configuration: what its ``config.json`` says; everything else is the target model's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from .config import BlockFFNConfig, read_config
from .errors import UserError

MAX_TOP_K = 10  # candidates per position that a library names


@dataclass(frozen=True)
class DraftConfig:
    """Sizes of a draft model. Its attention is grouped-query attention, as ``attention.GroupedQueryAttention`` reads it
    from a configuration, with residuals that are not scaled."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    is_mla: ClassVar[bool] = False
    attention_bias: ClassVar[bool] = False
    residual_scale: ClassVar[float] = 1.0

    @classmethod
    def from_file(cls, path: Path, target: BlockFFNConfig) -> DraftConfig:
        """Read the ``config.json`` of a draft for ``target``. Raises UserError naming the field and both values."""
        raw = read_config(path, "the draft model's config.json")
        if not isinstance(raw, dict):
            raise UserError(f"{path}: expected a JSON object, found {type(raw).__name__}")
        for name in ("hidden_size", "vocab_size"):
            if raw.get(name, getattr(target, name)) != getattr(target, name):
                raise UserError(f"{path}: field {name!r}: expected {getattr(target, name)} as in the model that it is "
                                f"to draft for, found {raw[name]!r}")
        if raw.get("hidden_act", "silu") != "silu":
            raise UserError(f"{path}: field 'hidden_act': expected 'silu', found {raw['hidden_act']!r}")
        heads = raw.get("num_attention_heads")
        defaults = {"hidden_size": target.hidden_size, "num_key_value_heads": heads}
        if isinstance(heads, int) and heads > 0:
            defaults["head_dim"] = target.hidden_size // heads
        config = cls(**{field.name: _positive(raw, field.name, defaults.get(field.name), path)
                        for field in fields(cls)})
        if config.num_attention_heads % config.num_key_value_heads:
            raise UserError(f"{path}: field 'num_key_value_heads': expected a divisor of num_attention_heads "
                            f"{config.num_attention_heads}, found {config.num_key_value_heads}")
        if config.head_dim % 2:
            raise UserError(f"{path}: field 'head_dim': expected an even number of rotated dimensions, "
                            f"found {config.head_dim}")
        return config


def _positive(raw: dict[str, Any], name: str, default: Any, path: Path) -> int:
    value = default if raw.get(name) is None else raw[name]
    if value is None:
        raise UserError(f"{path}: field {name!r} is missing; it has no default")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{path}: field {name!r}: expected a positive integer, found {value!r:.80}")
    return value
