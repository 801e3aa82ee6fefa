"""What MLC's engine does with a model library, in its order and through the same functions of TVM's runtime (MLC
contract, sections 1.1 to 1.4). Needs TVM and numpy alone, of any version that the engine itself may have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ctypes import c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

_POOLED, _CPU = 2, 1
_PAGE = 16


class EmulatedEngine:
    """A loaded library with its weights and a cache. Sequences are numbers; every method that returns logits takes what
    it appends to them. Errors of the library come as they are."""

    def __init__(self, module: Any, folder: Path, device_type: int = _CPU, device_index: int = 0) -> None:
        """``module``: the library, loaded by the caller, who may have others that use it (``model_library``; this file
        stands alone). ``folder``: with mlc-chat-config.json and tensor-cache.json. ``device_type``: DLPack's number."""
        self._module = module
        self._vm = module["vm_load_executable"]()
        self._vm["vm_initialization"](device_type, device_index, _POOLED, _CPU, 0, _POOLED)
        self._device = tvm_ffi.device(device_type, device_index)
        config = json.loads((Path(folder) / "mlc-chat-config.json").read_text(encoding="utf-8"))
        self.prefill_chunk: int = config["prefill_chunk_size"]
        self.metadata: dict[str, Any] = json.loads(self._vm["_metadata"]())
        _global("vm.builtin.tensor_cache.clear")()
        _global("vm.builtin.tensor_cache.load")(str(folder), device_type, device_index)
        names = [param["name"] for param in self.metadata["params"]]
        self._params = _global("vm.builtin.param_array_from_cache_by_name")(names)
        _global("vm.builtin.tensor_cache.clear")()
        self._cache: Any = None
        self._lengths: dict[int, int] = {}

    def has(self, name: str) -> bool:
        """Whether the library has a function."""
        try:
            return self._vm[name] is not None
        except (AttributeError, KeyError):
            return False

    def create_cache(self, sequences: int, tokens: int) -> None:
        """A cache for so many sequences of so many tokens together."""
        sizes = (sequences, tokens, self.prefill_chunk, _PAGE, 0)
        self._cache = self._vm["create_tir_paged_kv_cache"](*(tvm_ffi.Shape((size,)) for size in sizes))
        self.embeddings = self._vm["alloc_embedding_tensor"]()

    def add(self, sequence: int) -> None:
        """Begin a sequence."""
        _global("vm.builtin.kv_state_add_sequence")(self._cache, sequence)
        self._lengths[sequence] = 0

    def fork(self, parent: int, child: int) -> None:
        """Begin a sequence that shares all of another's tokens."""
        _global("vm.builtin.kv_state_fork_sequence")(self._cache, parent, child, -1)
        self._lengths[child] = self._lengths[parent]

    def remove(self, sequence: int) -> None:
        """End a sequence."""
        _global("vm.builtin.kv_state_remove_sequence")(self._cache, sequence)
        del self._lengths[sequence]

    def pop(self, sequence: int, count: int) -> None:
        """Forget a sequence's last tokens."""
        _global("vm.builtin.kv_state_popn")(self._cache, sequence, count)
        self._lengths[sequence] -= count

    def prefill(self, sequence: int, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens, ``prefill_chunk`` at a time; logits f32 [V] of the last."""
        for first in range(0, len(tokens), self.prefill_chunk):
            chunk = tokens[first:first + self.prefill_chunk]
            again = self._lengths[sequence] > 0 and self.has("extend")
            logits = self._run("extend" if again else "prefill", {sequence: chunk}, (1, len(chunk)))[0, 0]
        return logits

    def batch_prefill(self, texts: dict[int, Sequence[int]]) -> np.ndarray:
        """Append tokens to several sequences; logits f32 [sequences, V] of the last of each."""
        count = sum(map(len, texts.values()))
        last = np.cumsum([len(tokens) for tokens in texts.values()]) - 1
        again = any(self._lengths[sequence] for sequence in texts) and self.has("extend")
        return self._run("batch_extend" if again else "batch_prefill", texts, (1, count),
                         self._tensor(last.astype(np.int32)))[0]

    def decode(self, sequence: int, token: int) -> np.ndarray:
        """Append a token; logits f32 [V]."""
        return self._run("decode", {sequence: [token]}, (1, 1))[0, 0]

    def batch_decode(self, tokens: dict[int, int]) -> np.ndarray:
        """Append a token to each of several sequences; logits f32 [sequences, V]."""
        texts = {sequence: [token] for sequence, token in tokens.items()}
        return self._run("batch_decode", texts, (len(texts), 1))[:, 0]

    def verify(self, sequence: int, tokens: Sequence[int], parents: Sequence[int]) -> np.ndarray:
        """Try a token tree; logits f32 [nodes, V]. ``commit`` must follow."""
        return self._run("batch_verify", {sequence: tokens}, (1, len(tokens)), parents=parents)[0]

    def commit(self, sequence: int, path: Sequence[int]) -> None:
        """Keep a path from the root of the tree tried last; no node: none of it."""
        commit = _global("vm.builtin.attention_kv_cache_commit_accepted_token_tree_nodes")
        commit(self._cache, tvm_ffi.Shape((sequence,)), tvm_ffi.Shape((path[-1] if path else -1,)))
        self._lengths[sequence] += len(path)

    def hidden(self, sequence: int, tokens: Sequence[int], before: np.ndarray | None = None, *,
               kind: str = "prefill", parents: Sequence[int] | None = None) -> np.ndarray:
        """Append tokens; their states after the final norm, f32 [tokens, H]. ``before``, for a draft model: the state
        before each token. ``kind`` of function: prefill, decode (one token) or batch_verify, which takes ``parents`` as
        ``verify`` does."""
        return self._run(f"{kind}_to_last_hidden_states", {sequence: tokens}, (1, len(tokens)), parents=parents,
                         before=before)[0]

    def batch_hidden(self, texts: dict[int, Sequence[int]], before: np.ndarray, *, decode: bool) -> np.ndarray:
        """Append tokens to several sequences of a draft model, with the states before them one after the other; states
        f32 [tokens, H]. ``decode``: one token each, with the function for that."""
        count = sum(map(len, texts.values()))
        name, shape = ("batch_decode", (count, 1)) if decode else ("batch_prefill", (1, count))
        return self._run(f"{name}_to_last_hidden_states", texts, shape, before=before).reshape(count, -1)

    def logits(self, states: np.ndarray) -> np.ndarray:
        """states f32 [n, H] -> logits f32 [n, V]."""
        return self.call("get_logits", states, params=True)[0]

    def call(self, name: str, *arrays: np.ndarray, params: bool = False) -> tuple[Any, list[np.ndarray]]:
        """Any function of tensors: what it returns, with arrays for tensors, and the arguments afterwards."""
        tensors = [self._tensor(array) for array in arrays]
        result = self._vm[name](*tensors, *([self._params] if params else []))
        if isinstance(result, tvm_ffi.Array):
            result = list(map(self._array, result))
        return self._array(result) if isinstance(result, tvm_ffi.Tensor) else result, list(map(self._array, tensors))

    def _run(self, name: str, texts: dict[int, Sequence[int]], shape: tuple[int, int], *extra: Any,
             parents: Sequence[int] | None = None, before: np.ndarray | None = None) -> np.ndarray:
        tree = [] if parents is None else [tvm_ffi.Shape(parents)]
        lengths = tvm_ffi.Shape([len(tokens) for tokens in texts.values()])
        _global("vm.builtin.kv_state_begin_forward")(self._cache, tvm_ffi.Shape(list(texts)), lengths, *tree)
        ids = np.concatenate([np.array(tokens, np.int32) for tokens in texts.values()])
        embedded = self._vm["embed"](self._tensor(ids), self._params)
        if before is not None:
            embedded = self._vm["fuse_embed_hidden_states"](embedded, self._tensor(before), self._params)
        view = _global("runtime.TVMTensorCreateView")
        embedded = view(embedded, tvm_ffi.Shape((*shape, embedded.shape[1])), embedded.dtype, 0)
        result = self._vm[name](embedded, *extra, self._cache, self._params)
        _global("vm.builtin.kv_state_end_forward")(self._cache)
        for sequence, tokens in texts.items() if parents is None else ():
            self._lengths[sequence] += len(tokens)
        return self._array(result[0])

    def _tensor(self, array: np.ndarray) -> Any:
        shape, dtype = tvm_ffi.Shape(array.shape), tvm_ffi.dtype(str(array.dtype))
        tensor = _global("runtime.TVMTensorAllocWithScope")(shape, dtype, self._device, None)
        array = np.ascontiguousarray(array)
        _global("runtime.TVMTensorCopyFromBytes")(tensor, _address(array), array.nbytes)
        return tensor

    @staticmethod
    def _array(tensor: Any) -> np.ndarray:
        array = np.empty(tensor.shape, str(tensor.dtype))
        _global("runtime.TVMTensorCopyToBytes")(tensor, _address(array), array.nbytes)
        return array


def _address(array: np.ndarray) -> c_void_p:
    return array.ctypes.data_as(c_void_p)


def _global(name: str) -> Any:
    return tvm_ffi.get_global_func(name)
