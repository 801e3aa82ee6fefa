"""A toy artifact on disk, with weights, chat template and tokenizer."""

import json
import platform

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from runtime_py.tvm_runtime import installed_version

MODEL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=300, num_experts=12, expert_size=8,
             attention_type="mla", q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4,
             ffn_type="block", bos_token_id=1, eos_token_id=[2], architectures=["MiniCPMForCausalLM"])
WINDOW, CHUNK = 96, 16
HOST = f"{platform.machine()} generic, sse"


def byte_level_tokenizer():
    """GPT-2 style: every byte is a token, a few merges, three special tokens in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    merges = []
    for left, right in (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("ä", "¸")):
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback_tokenizer():
    """Llama style: words start with U+2581, characters outside the vocabulary are spelled in bytes."""
    letters = [chr(c) for c in range(33, 127)] + ["\u2581", "\u00e9"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = []
    for left, right in (("\u2581", "t"), ("\u2581t", "h"), ("\u2581", "\u2581")):
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    return tokenizer


def write_artifact(folder, tokenizer=True):
    """A complete artifact of a toy model; its library file is only a name."""
    folder.mkdir()
    (folder / "lib").mkdir()
    (folder / "lib" / "toy.so").write_bytes(b"not a library")
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.normal(size=(3, 5)).astype("f4"), "b.weight": np.arange(7, dtype="f2"),
               "c.q_weight": np.arange(6, dtype="u4").reshape(2, 3)}
    data, records = b"", []
    for name, tensor in tensors.items():
        data += bytes(-len(data) % 64)
        records.append(dict(name=name, shape=list(tensor.shape), dtype=tensor.dtype.name, format="raw",
                            nbytes=tensor.nbytes, byteOffset=len(data)))
        data += tensor.tobytes()
    (folder / "params_shard_0.bin").write_bytes(data)
    shard = dict(dataPath="params_shard_0.bin", format="raw-shard", nbytes=len(data), records=records)
    (folder / "tensor-cache.json").write_text(json.dumps(dict(metadata={}, records=[shard])))
    (folder / "mlc-chat-config.json").write_text(json.dumps(dict(
        model_type="blockffn", vocab_size=MODEL["vocab_size"], temperature=0.8, top_p=0.9, repetition_penalty=1.0,
        model_config=MODEL | dict(context_window_size=WINDOW, prefill_chunk_size=CHUNK),
        conv_template=dict(name="toy", system_template="{system_message}", system_message="", messages=[],
                           roles=dict(user="<U>", assistant="<A>"), seps=["", "</s>"], role_content_sep="",
                           role_empty_sep="", stop_str=[], stop_token_ids=[2], system_prefix_token_ids=[1]),
        blockffn=dict(format_version=1, library="lib/toy.so", target="cpu", host=HOST, tvm_version=installed_version(),
                      cache=dict(shape=[WINDOW + 64, 1, 32], dtype="float32"), max_tree_nodes=64))))
    if tokenizer:
        byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    return tensors


