"""The functions with which MLC's engine chooses tokens on the device (MLC contract, section 1.3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import tvm.relax.frontend.nn as nn
from tvm import tirx
from tvm.relax.frontend.nn import op, spec

from schedules.gpu.sort import BITS, DIGITS, PART

from ..layers import Build, call

SAMPLING_KINDS = ("cuda", "metal", "vulkan")  # of devices; for others the engine chooses on the processor
_BITS = 32  # of a probability
_PIVOTS = 3  # that the engine proposes to ``renormalize_by_top_p``


class SamplerFunctions:
    """Methods of a model with a ``build``."""

    build: Build

    def multinomial_from_uniform(self, probs: nn.Tensor, uniform_samples: nn.Tensor, sample_indices: nn.Tensor):
        kernel = self.build.kernels.multinomial(self.build.tiles, probs.shape[1])
        return call(kernel, "multinomial", [probs, uniform_samples, sample_indices], (sample_indices.shape, "int32"))

    def argsort_probs(self, probs: nn.Tensor):
        (rows, vocab), values, names = probs.shape, probs, []
        for shift in range(0, _BITS, BITS):
            kernel = self.build.kernels.sort_pass(self.build.tiles, vocab, first=not names)
            values, *names, _ = call(kernel, "sort_pass", [values, *names, tirx.IntImm("int64", shift)],
                                     (probs.shape, "float32"), (probs.shape, "int32"),
                                     ((rows, DIGITS, -(-vocab // PART)), "int32"))
        return values, *names

    def sample_with_top_p(self, sorted_probs: nn.Tensor, sorted_indices: nn.Tensor, uniform_samples: nn.Tensor,
                          sample_indices: nn.Tensor, top_p: nn.Tensor):
        kernel = self.build.kernels.sample_top_p(self.build.tiles, sorted_probs.shape[1])
        return call(kernel, "sample_top_p", [sorted_probs, sorted_indices, uniform_samples, sample_indices, top_p],
                    (sample_indices.shape, "int32"))

    def sampler_take_probs(self, unsorted_probs: nn.Tensor, sorted_indices: nn.Tensor, sample_indices: nn.Tensor,
                           sampling_result: nn.Tensor, top_prob_offsets: nn.Tensor):
        ranked = top_prob_offsets.shape
        return call(self.build.kernels.take_probs(unsorted_probs.shape[1]), "take_probs",
                    [unsorted_probs, sorted_indices, sample_indices, sampling_result, top_prob_offsets],
                    (sample_indices.shape, "float32"), (ranked, "float32"), (ranked, "int32"))

    def renormalize_by_top_p(self, probs: nn.Tensor, top_p: nn.Tensor, init_pivots: nn.Tensor):
        """The search needs no pivots to begin with."""
        kernel = self.build.kernels.renormalize_top_p(self.build.tiles, probs.shape[1])
        return call(kernel, "renormalize_top_p", [probs, top_p], (probs.shape, "float32"))

    def sampler_verify_draft_tokens(self, draft_probs: nn.Tensor, draft_tokens: nn.Tensor, model_probs: nn.Tensor,
                                    token_tree_first_child: nn.Tensor, token_tree_next_sibling: nn.Tensor,
                                    uniform_samples: nn.Tensor, token_tree_parent_ptr: nn.Tensor):
        kernel = self.build.kernels.verify_drafts(self.build.tiles, model_probs.shape[1])
        written = [model_probs, token_tree_parent_ptr]
        return op.tensor_ir_inplace_op(
            kernel, "verify_drafts", [*written, draft_probs, draft_tokens, token_tree_first_child,
                                      token_tree_next_sibling, uniform_samples], [0, 1],
            [nn.Tensor.placeholder(tensor.shape, tensor.dtype) for tensor in written])


def sampler_spec(vocab: int) -> dict[str, dict[str, Any]]:
    """Argument types by function. The numbers of rows are others than those with an upper bound: a verification has as
    many as nodes."""
    ints, floats = (partial(_tensor, dtype=dtype) for dtype in ("int32", "float32"))
    probs = floats("rows", vocab)
    samples = {"uniform_samples": floats("samples"), "sample_indices": ints("samples")}
    return {
        "multinomial_from_uniform": {"probs": probs} | samples,
        "argsort_probs": {"probs": probs},
        "sample_with_top_p": {"sorted_probs": probs, "sorted_indices": ints("rows", vocab)} | samples
        | {"top_p": floats("rows")},
        "sampler_take_probs": {
            "unsorted_probs": probs, "sorted_indices": ints("rows", vocab), "sample_indices": ints("samples"),
            "sampling_result": ints("samples"), "top_prob_offsets": ints("positions")},
        "renormalize_by_top_p": {"probs": probs, "top_p": floats("rows"), "init_pivots": floats("rows", _PIVOTS)},
        "sampler_verify_draft_tokens": {
            "draft_probs": probs, "draft_tokens": ints("rows"), "model_probs": probs,
            "token_tree_first_child": ints("rows"), "token_tree_next_sibling": ints("rows"),
            "uniform_samples": floats("rows"), "token_tree_parent_ptr": ints("trees")},
    }


def _tensor(*shape: str | int, dtype: str) -> spec.Tensor:
    return spec.Tensor(list(shape), dtype)
