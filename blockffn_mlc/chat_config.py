"""``mlc-chat-config.json``: what both runtimes read first (MLC contract, artifact layout)."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tvm
from tokenizers import Tokenizer

from schedules.tiles import MAX_TREE_NODES

from .attention import cache_shape
from .eagle import describe_draft
from .errors import UserError
from .layers import Build
from .sentencepiece_model import FILE as SENTENCEPIECE
from .sentencepiece_model import tokenizer_from_sentencepiece

FILE = "mlc-chat-config.json"
FORMAT_VERSION = 1
DRAFT = "draft"  # folder of the draft model for MLC's engine
DRAFT_TYPE = "eagle"  # MLC's name for models of this kind
USER, ASSISTANT = "<用户>", "<AI>"
TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", SENTENCEPIECE,
                   "added_tokens.json", "chat_template.jinja")
# Tokens of a long prompt that MLC's engine takes at a time, as many as the largest tree has (docs/mlc.md, How a long
# prompt is read).
MLC_PREFILL_CHUNK = 64
_GENERATION_DEFAULTS = {"temperature": 0.8, "top_p": 0.8, "repetition_penalty": 1.0}


def chat_config(build: Build, library: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The whole file as a dictionary. ``library``: fields of section ``blockffn`` that describe the library.
    ``folder``: the checkpoint's, for tokenizer and generation defaults."""
    config, generation, tokenizer = build.config, _generation(folder), _tokenizer(folder)
    eos_text = (tokenizer.id_to_token(config.eos_token_id[0]) if tokenizer else None) or "</s>"
    limits = {"vocab_size": config.vocab_size, "context_window_size": build.context_window,
              "prefill_chunk_size": build.prefill_chunk}
    common = limits | {"sliding_window_size": -1, "attention_sink_size": -1, "tensor_parallel_shards": 1,
                       "pipeline_parallel_stages": 1, "active_vocab_size": config.vocab_size}
    if build.mlc:
        common["prefill_chunk_size"] = min(build.prefill_chunk, MLC_PREFILL_CHUNK)
    return {
        "version": "0.1.0", "model_type": "minicpm", "quantization": build.quantization.name, **common,
        "model_config": config.to_dict() | limits,
        "temperature": generation["temperature"], "top_p": generation["top_p"],
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": generation["repetition_penalty"],
        "tokenizer_files": tokenizer_files(folder), "tokenizer_info": _tokenizer_info(tokenizer),
        "conv_template": conversation(config.bos_token_id, list(config.eos_token_id), eos_text),
        "pad_token_id": 0, "bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_id),
        "model_task": "chat", "embedding_metadata": None,
        "blockffn": {
            "format_version": FORMAT_VERSION, **library,
            "tvm_version": tvm.__version__, "max_tree_nodes": MAX_TREE_NODES,
            "activations": build.activations,
            "cache": {"shape": list(cache_shape(build)), "dtype": build.quantization.cache_dtype},
            **({"draft": describe_draft(build)} if build.draft else {})},
    }


def draft_chat_config(target: dict[str, Any], build: Build) -> dict[str, Any]:
    """The file of the draft model for MLC's engine, from its ``target``'s. Our runtime reads the draft in the artifact
    itself: there is no section ``blockffn``."""
    sizes = {name: target["model_config"][name] for name in ("vocab_size", "context_window_size", "prefill_chunk_size")}
    return {name: value for name, value in target.items() if name != "blockffn"} | {
        "model_type": DRAFT_TYPE, "model_config": asdict(build.draft.config) | sizes, "tokenizer_files": []}


def tokenizer_files(folder: Path | None) -> list[str]:
    """Names of the tokenizer files of an artifact: those that the checkpoint's folder has, and the ``tokenizer.json``
    that is made of a sentencepiece model without one."""
    found = [name for name in TOKENIZER_FILES if folder is not None and (folder / name).is_file()]
    return [TOKENIZER, *found] if SENTENCEPIECE in found and TOKENIZER not in found else found


def copy_tokenizer(folder: Path | None, out: Path) -> None:
    """Copy the tokenizer files of a checkpoint into an artifact, or make the one that runtimes read. Raises UserError,
    see ``sentencepiece_model``."""
    for name in tokenizer_files(folder):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
        else:
            tokenizer_from_sentencepiece(folder / SENTENCEPIECE).save(str(out / name))


def conversation(bos: int, eos: list[int], eos_text: str) -> dict[str, Any]:
    """The released chat format: bos, then <用户>question<AI>answer eos per turn."""
    return {
        "name": "blockffn", "system_template": "{system_message}", "system_message": "",
        "system_prefix_token_ids": [bos], "add_role_after_system_message": True,
        "roles": {"user": USER, "assistant": ASSISTANT},
        "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"},
        "messages": [], "seps": ["", eos_text], "role_content_sep": "", "role_empty_sep": "",
        "stop_str": [], "stop_token_ids": eos, "strip_reasoning_in_history": False}


def _generation(folder: Path | None) -> dict[str, float]:
    """Sampling defaults: generation_config.json over ours."""
    path = folder / "generation_config.json" if folder else None
    if path is None or not path.is_file():
        return _GENERATION_DEFAULTS
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        chosen = {name: default if raw.get(name) is None else raw[name]
                  for name, default in _GENERATION_DEFAULTS.items()}
    except (ValueError, OSError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as a JSON object ({error})") from None
    for name, value in chosen.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise UserError(f"{path}: field {name!r}: expected a number from 0 up, found {value!r}")
    return chosen


def _tokenizer(folder: Path | None) -> Tokenizer | None:
    path = folder / TOKENIZER if folder else None
    if path is None or TOKENIZER not in tokenizer_files(folder):
        return None
    if not path.is_file():
        return tokenizer_from_sentencepiece(folder / SENTENCEPIECE)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: not a usable tokenizer ({error})") from None


def _tokenizer_info(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """How MLC must post-process tokens: byte-level BPE or sentencepiece with byte fall-back, and whether a space is put
    before texts, which decoding takes away again."""
    parts = json.loads(tokenizer.to_str()) if tokenizer else {}
    normalizer, splitter, decoder = (_steps(parts.get(name)) for name in ("normalizer", "pre_tokenizer", "decoder"))

    def prepends(steps: list[dict[str, Any]]) -> bool:
        return any(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps)

    return {"token_postproc_method": "byte_level" if any(step["type"] == "ByteLevel" for step in decoder)
            else "byte_fallback",
            "prepend_space_in_encode": prepends(splitter) or any(
                step["type"] == "Prepend" and step["prepend"] == "\u2581" for step in normalizer),
            "strip_space_in_decode": prepends(decoder) or any(
                step["type"] == "Strip" and step["content"] == " " and step["start"] == 1 for step in decoder)}


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer, which may be a sequence of them or none."""
    if not part:
        return []
    lists = [part[name] for name in ("normalizers", "pretokenizers", "decoders") if name in part]
    return [step for inner in lists[0] for step in _steps(inner)] if lists else [part]
