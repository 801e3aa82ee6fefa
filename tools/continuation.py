"""Continue many prompts at once with the PyTorch reference, every token computed once."""

from __future__ import annotations

import torch
from demo_data import EOS
from torch import Tensor

from blockffn_mlc.reference import Reference, ReferenceOutput


class CachedReference(Reference):
    """A reference that keeps keys and values: each pass continues the ones before."""

    def __init__(self, model: Reference) -> None:
        super().__init__(model.config, model.tensors)
        self._length = 0
        self._layers: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, ids: Tensor, start: int | None = None) -> ReferenceOutput:
        start, self._length = self._length, self._length + ids.shape[1]
        return super().forward(ids, start)

    def _attend(self, prefix: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if prefix in self._layers:
            k, v = (torch.cat(pair, 2) for pair in zip(self._layers[prefix], (k, v)))
        self._layers[prefix] = k, v
        return super()._attend(prefix, q, k, v)


@torch.no_grad()
def continued(model: Reference, prompts: Tensor, tokens: int, temperature: float, seed: int = 0) -> list[Tensor]:
    """Prompts (int64 [B, T]) with up to ``tokens`` more each, up to the end token; temperature 0 is greedy."""
    cached, generator = CachedReference(model), torch.Generator().manual_seed(seed)
    ids = token = prompts
    for _ in range(tokens):
        logits = cached.forward(token).logits[:, -1]
        if temperature == 0:
            token = logits.argmax(-1, keepdim=True)
        else:
            token = (logits / temperature).softmax(-1).multinomial(1, generator=generator)
        ids = torch.cat([ids, token], 1)
    ends = [(row == EOS).nonzero()[:1].flatten().tolist() for row in ids]
    return [row[:end[0] + 1] if end else row for row, end in zip(ids, ends)]
