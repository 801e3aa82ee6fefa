"""What MLC's readers, in C++ and Python, require of an artifact's files and of a library's metadata (MLC contract,
sections 1.6, 2.1 and 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blockffn_mlc.errors import UserError

SHARD_BYTES = 32 << 20  # of a shard with more than one tensor


@dataclass(frozen=True)
class Kind:
    """What a field may hold: ``test(value)``, and that in words."""

    words: str
    test: Callable[[Any], bool]


def _one_of(*values: Any) -> Kind:
    return Kind(" or ".join(map(repr, values)),
                lambda found: any(type(found) is type(value) and found == value for value in values))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list(words: str, test: Callable[[Any], bool]) -> Kind:
    return Kind(f"a list of {words}", lambda value: isinstance(value, list) and all(map(test, value)))


TEXT = Kind("a string", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
INTEGER = Kind("an integer", _is_int)
POSITIVE = Kind("a positive integer", lambda value: _is_int(value) and value > 0)
NUMBER = Kind("a number", lambda value: _is_int(value) or isinstance(value, float))
TEXTS, INTEGERS = _list("strings", TEXT.test), _list("integers", _is_int)
OBJECTS = _list("objects", lambda value: isinstance(value, dict))
ONE, OFF = _one_of(1), _one_of(-1)
_MESSAGES = _list("[role, content]", lambda value: isinstance(value, list) and len(value) == 2
                  and all(isinstance(part, str) for part in value))

CHAT_CONFIG: dict[str, Any] = {
    "version": TEXT, "model_type": TEXT, "quantization": TEXT,
    "model_config": {"vocab_size": POSITIVE, "context_window_size": POSITIVE, "prefill_chunk_size": POSITIVE},
    "vocab_size": POSITIVE, "context_window_size": POSITIVE, "prefill_chunk_size": POSITIVE,
    "active_vocab_size": POSITIVE, "sliding_window_size": OFF, "attention_sink_size": OFF,
    "tensor_parallel_shards": ONE, "pipeline_parallel_stages": ONE,
    "temperature": NUMBER, "top_p": NUMBER, "presence_penalty": NUMBER, "frequency_penalty": NUMBER,
    "repetition_penalty": NUMBER,
    "tokenizer_files": TEXTS,
    "tokenizer_info": {"token_postproc_method": _one_of("byte_fallback", "byte_level"),
                       "prepend_space_in_encode": FLAG, "strip_space_in_decode": FLAG},
    "conv_template": {
        "system_template": TEXT, "system_message": TEXT, "system_prefix_token_ids": INTEGERS,
        "add_role_after_system_message": FLAG, "roles": {"user": TEXT, "assistant": TEXT},
        "role_templates": {"user": TEXT, "assistant": TEXT, "tool": TEXT}, "messages": _MESSAGES,
        "seps": Kind("a list of one or two strings", lambda value: TEXTS.test(value) and len(value) in (1, 2)),
        "role_content_sep": TEXT, "role_empty_sep": TEXT, "stop_str": TEXTS, "stop_token_ids": INTEGERS},
    "pad_token_id": INTEGER, "bos_token_id": INTEGER,
    "eos_token_id": Kind("an integer or a list of integers", lambda value: _is_int(value) or INTEGERS.test(value)),
    "model_task": _one_of("chat"), "embedding_metadata": Kind("null", lambda value: value is None),
}
METADATA: dict[str, Any] = {
    "model_type": TEXT, "quantization": TEXT,
    "context_window_size": POSITIVE, "prefill_chunk_size": POSITIVE, "max_batch_size": POSITIVE,
    "sliding_window_size": OFF, "attention_sink_size": OFF,
    "tensor_parallel_shards": ONE, "pipeline_parallel_stages": ONE, "seqlen_padding_factor": ONE,
    "kv_state_kind": _one_of("kv_cache"), "model_task": _one_of("chat"), "active_vocab_size": POSITIVE,
    "kv_cache": dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
                              POSITIVE),
    "memory_usage": Kind("an object of integers", lambda value: isinstance(value, dict)
                         and all(map(_is_int, value.values()))),
    "params": OBJECTS,
}
PARAM = {"name": TEXT, "dtype": TEXT, "shape": INTEGERS, "preprocs": _one_of([]), "pipeline_stages": _one_of([0])}
INDEX = {"metadata": {"ParamSize": POSITIVE, "ParamBytes": NUMBER, "BitsPerParam": NUMBER}, "records": OBJECTS}
SHARD = {"dataPath": TEXT, "format": _one_of("raw-shard"), "nbytes": POSITIVE, "records": OBJECTS}
TENSOR = {"name": TEXT, "shape": INTEGERS, "dtype": TEXT, "format": _one_of("raw"), "nbytes": POSITIVE,
          "byteOffset": INTEGER}


def check_chat_config(raw: Any, where: str) -> None:
    """``mlc-chat-config.json``. Raises UserError naming the field, what it must be and what it is."""
    _check(raw, CHAT_CONFIG, where)
    inner = raw["model_config"]
    for name in ("vocab_size", "context_window_size"):
        if inner[name] != raw[name]:
            raise UserError(f"{where}: field 'model_config.{name}': expected {raw[name]} as in field {name!r}, found "
                            f"{inner[name]}")
    for field, value, limit, most in (
            ("prefill_chunk_size", raw["prefill_chunk_size"], "model_config.prefill_chunk_size",
             inner["prefill_chunk_size"]),
            ("model_config.prefill_chunk_size", inner["prefill_chunk_size"], "context_window_size",
             raw["context_window_size"])):
        if value > most:
            raise UserError(f"{where}: field {field!r}: expected at most the {limit} of {most}, found {value}")


def check_metadata(raw: Any, where: str) -> None:
    """What a library's ``_metadata()`` says. Raises UserError, as ``check_chat_config``."""
    _check(raw, METADATA, where)
    for param in raw["params"]:
        _check(param, PARAM, f"{where}: parameter {param.get('name')!r}")


def check_tensor_cache(raw: Any, where: str) -> None:
    """``tensor-cache.json``, without the files it names. Raises UserError, as ``check_chat_config``."""
    _check(raw, INDEX, where)
    for shard in raw["records"]:
        _check(shard, SHARD, f"{where}: shard {shard.get('dataPath')!r}")
        for tensor in shard["records"]:
            _check(tensor, TENSOR, f"{where}: tensor {tensor.get('name')!r}")
        if shard["nbytes"] > SHARD_BYTES and len(shard["records"]) > 1:
            raise UserError(f"{where}: shard {shard['dataPath']!r}: expected at most {SHARD_BYTES} bytes for several "
                            f"tensors, found {shard['nbytes']}")


def _check(raw: Any, fields: dict[str, Any], where: str, path: str = "") -> None:
    if not isinstance(raw, dict):
        raise UserError(f"{where}: {f'field {path[:-1]!r}: ' if path else ''}expected an object, found {raw!r:.80}")
    for name, kind in fields.items():
        field = f"{where}: field {path + name!r}"
        if name not in raw:
            words = "an object" if isinstance(kind, dict) else kind.words
            raise UserError(f"{field} is missing; MLC's engine expects {words}")
        if isinstance(kind, dict):
            _check(raw[name], kind, where, f"{path}{name}.")
        elif not kind.test(raw[name]):
            raise UserError(f"{field}: MLC's engine expects {kind.words}, found {raw[name]!r:.80}")
