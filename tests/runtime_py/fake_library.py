"""A deterministic toy model in numpy behind Library's interface: causal attention, routers, logits.

It honours positions, visible, ancestors, rows and past as docs/artifact.md says, token by token in the
same order whatever the chunk, so equal contexts give bit-equal results.
"""

import numpy as np


class FakeLibrary:
    accept = None

    def __init__(self, artifact, device=None):
        self.artifact = artifact
        config = artifact.config
        rng = np.random.default_rng(7)
        self.slots, _, self.width = artifact.cache_shape
        self.embedding = rng.normal(size=(config.vocab_size, self.width))
        self.routers = rng.normal(size=(config.num_hidden_layers, self.width, config.num_experts))
        self.lm_head = rng.normal(size=(self.width, config.vocab_size))
        self.calls = []

    def new_caches(self):
        # NaN: a slot that was never written must never be read.
        return [np.full(self.artifact.cache_shape, np.nan, np.float32) for _ in self.routers]

    def forward(self, ids, positions, visible, ancestors, rows, past, caches, *, dense=False):
        n = len(ids)
        assert {array.dtype.name for array in (ids, positions, visible, ancestors, rows)} == {"int32"}
        assert ids.shape == positions.shape == visible.shape == (n,) and ancestors.shape == (n, 2) and rows.ndim == 1
        assert 1 <= n <= self.artifact.prefill_chunk_size and len(rows) >= 1
        assert past + n <= self.slots and positions.max() < self.artifact.context_window_size
        self.calls.append((n, len(rows)))
        masks = ancestors.view(np.uint32).astype(np.uint64)
        masks = masks[:, 0] | masks[:, 1] << np.uint64(32)
        hidden = self.embedding[ids] + np.sin(np.outer(positions, np.arange(1, self.width + 1)) / 7)
        scores = []
        for cache, router in zip(caches, self.routers):
            cache[past:past + n, 0] = hidden
            mixed = np.empty_like(hidden)
            for t in range(n):
                slots = [*range(visible[t]), *(past + b for b in range(64) if masks[t] >> np.uint64(b) & np.uint64(1))]
                keys = cache[slots, 0].astype(np.float64)
                weights = np.exp(np.tanh(np.array([key @ hidden[t] for key in keys])))
                mixed[t] = np.tanh(hidden[t] + (weights[:, None] * keys).sum(0) / weights.sum())
            hidden = mixed
            raw = np.array([np.maximum(h @ router - 2, 0) for h in hidden])
            scores.append((raw * np.where(np.arange(raw.shape[1]) % 3, 1, -1)).astype(np.float32))
        return np.array([hidden[row] @ self.lm_head for row in rows]).astype(np.float32), scores

    def step(self, token, past, caches, *, dense=False):
        ids, positions, visible, rows = (np.array([number], np.int32) for number in (token, past, past + 1, 0))
        logits, _ = self.forward(ids, positions, visible, np.zeros((1, 2), np.int32), rows, past, caches, dense=dense)
        return logits[0], None

    def wait(self):
        pass

    def commit(self, idx, past, caches):
        assert idx.dtype == np.int32 and np.all(np.diff(idx) > 0)
        for cache in caches:
            for i, source in enumerate(idx):
                cache[past + i] = cache[past + source]
