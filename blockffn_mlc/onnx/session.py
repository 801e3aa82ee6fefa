"""An exported model under ONNX Runtime, with its cache kept from call to call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from ..staging import ONNX_MODEL


class OnnxSession:
    """The model in ``folder``, which ``build.py --emit onnx`` wrote. Sizes: B sequences, T new tokens, S tokens with
    those cached, V vocabulary, L layers, E experts."""

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        """``threads`` 0: as many as ONNX Runtime thinks fit."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(Path(folder) / ONNX_MODEL), options,
                                                     providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._mask = np.zeros((1, 0), np.int64)
        self._cache: dict[str, np.ndarray] = {}
        self.reset()

    @property
    def cache(self) -> dict[str, np.ndarray]:
        """``past_key_values.N.KIND`` -> [B, heads, tokens, width]."""
        return self._cache

    def reset(self, batch: int = 1) -> None:
        """Forget all tokens."""
        self._mask = np.zeros((batch, 0), np.int64)
        self._cache = {}
        for argument in self._session.get_inputs():
            if argument.name.startswith("past_key_values"):
                dtype = np.float16 if argument.type == "tensor(float16)" else np.float32
                self._cache[argument.name] = np.zeros((batch, argument.shape[1], 0, argument.shape[3]), dtype)

    def rollback(self, length: int) -> None:
        """Forget the tokens from ``length`` on."""
        self._mask = self._mask[:, :length]
        self._cache = {name: np.ascontiguousarray(rows[:, :, :length]) for name, rows in self._cache.items()}

    def forward(self, ids: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Append ``ids`` [B, T], of which those with 0 in ``mask`` [B, T] are padding. Returns logits float32
        [B, T, V] and router scores float32 [L, B, T, E]."""
        ids = np.asarray(ids, np.int64)
        mask = np.ones_like(ids) if mask is None else np.asarray(mask, np.int64)
        self._mask = np.concatenate([self._mask, mask], axis=1)
        positions = np.maximum(self._mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1]:]
        feeds = {"input_ids": ids, "attention_mask": self._mask, "position_ids": positions}
        results = dict(zip(self._outputs, self._session.run(None, feeds | self._cache)))
        self._cache = {name: results[name.replace("past_key_values", "present")] for name in self._cache}
        return results["logits"], results["router_scores"]
