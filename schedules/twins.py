"""Every kernel restated in numpy from the equations, without its schedule.

Inputs are in their logical layout (weights [out, in], before ``layout.pack_rows``; activations as
``activations.decode`` gives them) and may be of any float dtype; the arithmetic is float64.
``n`` tokens, ``E`` experts, ``H`` hidden size, ``D`` expert size.
"""

from __future__ import annotations

import numpy as np


def f64(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, dtype=np.float64)


def linear(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x [..., K], w [O, K], bias [O] -> [..., O]."""
    y = f64(x) @ f64(w).T
    return y if bias is None else y + f64(bias)


def linear_heads(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x [n, heads, K] (or [n, 1, K], the same for all heads), w [heads, O, K] -> [n, heads, O]."""
    return (f64(w) @ f64(x)[..., None])[..., 0]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, scale: float = 1.0) -> np.ndarray:
    """x [..., W], weight [W] -> [..., W]."""
    x = f64(x)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * f64(weight) * scale


def embedding(ids: np.ndarray, table: np.ndarray, scale: float) -> np.ndarray:
    """ids [n], table [V, H] -> [n, H]."""
    return f64(table)[ids] * scale


def router(x: np.ndarray, input_weight: np.ndarray, w: np.ndarray, norm: str, eps: float, norm_scale: float,
           weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """x [n, H], input_weight [H], w [E, H], weight [E] if ``norm`` is "rms" -> h = rms_norm(x) [n, H] and scores
    [n, E] (paper eq. 2-3; 0 for inactive experts)."""
    h = rms_norm(x, input_weight, eps)
    scores = np.maximum(linear(h, w), 0.0)
    if norm == "rms":
        scores = rms_norm(scores, weight, eps)
    elif norm == "sum":
        scores = scores / (scores.sum(-1, keepdims=True) * norm_scale + 1e-5)
    return h, scores


def union(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scores [n, E] -> ids int32 [E] (ascending, then -1), count int32 [1], uses int32 [E] (then 0), tokens
    int32 [E, n] (by place in the union: the tokens that use the expert, ascending, then -1)."""
    n, experts = scores.shape
    active = np.flatnonzero((scores != 0).any(axis=0))
    ids, uses = np.full(experts, -1, np.int32), np.zeros(experts, np.int32)
    tokens = np.full((experts, n), -1, np.int32)
    ids[:len(active)] = active
    for place, expert in enumerate(active):
        users = np.flatnonzero(scores[:, expert])
        uses[place], tokens[place, :len(users)] = len(users), users
    return ids, np.array([len(active)], np.int32), uses, tokens


def sparse_up(x: np.ndarray, scores: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x [n, H], scores [n, E], w [E, D, H] -> act [n, E, D] by expert id: silu(up_e(x)) * score."""
    h = np.einsum("nh,edh->ned", f64(x), f64(w))
    return h / (1.0 + np.exp(-h)) * f64(scores)[:, :, None]


def sparse_down(act: np.ndarray, w: np.ndarray, residual: np.ndarray, residual_scale: float) -> np.ndarray:
    """act [n, E, D] by expert id, w [E, H, D], residual [n, H] -> [n, H]."""
    return f64(residual) + residual_scale * np.einsum("ned,ehd->nh", f64(act), f64(w))


def gated_silu(x: np.ndarray) -> np.ndarray:
    """x [n, 2*W], gate | up -> silu(gate) * up [n, W]."""
    gate, up = np.split(f64(x), 2, axis=-1)
    return gate / (1.0 + np.exp(-gate)) * up


def top_k(logits: np.ndarray, k: int, token_ids: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """logits [m, V], token_ids int32 [V] -> the k largest of each row in falling order, lower indices first among
    equals: tokens int32 [m, k], log softmax [m, k]."""
    x = f64(logits)
    order = np.argsort(-x, axis=-1, kind="stable")[:, :k].astype(np.int32)
    shifted = x - x.max(-1, keepdims=True)
    log_probs = np.take_along_axis(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), order, axis=-1)
    return order if token_ids is None else token_ids[order], log_probs


def penalised(logits: np.ndarray, penalty: float, seen: np.ndarray) -> np.ndarray:
    """logits [V], token ids that a text holds -> logits [V]: theirs divided by ``penalty`` where positive, else
    multiplied by it."""
    x = f64(logits).copy()
    x[seen] = np.where(x[seen] < 0, x[seen] * penalty, x[seen] / penalty)
    return x


def choose(logits: np.ndarray, inverse_temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """logits [V] -> the probabilities [V] that a token is drawn with: softmax(inverse_temperature * logits), tokens
    outside the ``top_k`` largest (0: none) and then those outside the smallest set of likely ones with ``top_p`` of the
    rest left out. An inverse temperature of 0: the lowest token with the largest logit."""
    x = f64(logits)
    if inverse_temperature == 0:
        return np.eye(len(x))[x.argmax()]
    weights = np.exp((x - x.max()) * inverse_temperature)
    weights[x < np.sort(x)[-min(top_k or len(x), len(x))]] = 0
    if top_p < 1:
        order = np.argsort(-x, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= top_p * weights.sum()]] = 0
    return weights / weights.sum()


def rotate(x: np.ndarray, pos: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Half-split rotation of x [n, ..., R] by the table's rows pos [n]."""
    cos, sin = np.split(f64(table)[pos].reshape(len(pos), *[1] * (x.ndim - 2), -1), 2, axis=-1)
    low, high = np.split(f64(x), 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def latent_query(x: np.ndarray, q_up: np.ndarray, k_up: np.ndarray, pos: np.ndarray, table: np.ndarray) -> np.ndarray:
    """x [n, K], q_up [heads, nope+R, K], k_up [heads, L, nope], pos [n], table [positions, R] -> [n, heads, L+R]."""
    q, nope = linear_heads(x[:, None], q_up), k_up.shape[-1]
    return np.concatenate([linear_heads(q[..., :nope], k_up), rotate(q[..., nope:], pos, table)], axis=-1)


def seen_slots(visible: np.ndarray, ancestors: np.ndarray, past: int, slots: int) -> np.ndarray:
    """bool [n, slots]: which cache slots each token attends to."""
    seen = np.arange(slots)[None] < visible[:, None]
    for t, words in enumerate(ancestors.astype(np.int64) & 0xFFFFFFFF):
        mask = int(words[0]) | int(words[1]) << 32
        seen[t, [past + b for b in range(64) if mask >> b & 1]] = True
    return seen


def attention(q: np.ndarray, keys: np.ndarray, values: np.ndarray, seen: np.ndarray, scale: float,
              v_up: np.ndarray | None = None) -> np.ndarray:
    """q [n, heads, R], keys [slots, kv, R], values [slots, kv, V], seen bool [n, slots], v_up [heads, O, V] ->
    [n, heads*V], or [n, heads*O] with ``v_up``."""
    group = q.shape[1] // keys.shape[1]
    keys, values = (np.repeat(f64(x), group, axis=1) for x in (keys, values))
    s = np.where(seen[:, None], np.einsum("nhr,shr->nhs", f64(q), keys) * scale, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    mix = np.einsum("nhs,shv->nhv", p / p.sum(-1, keepdims=True), values)
    return (mix if v_up is None else linear_heads(mix, v_up)).reshape(len(q), -1)


def rope_heads(x: np.ndarray, pos: np.ndarray, table: np.ndarray, rotated: int) -> np.ndarray:
    """x [n, heads, D], pos [n], table [P, D] -> the first ``rotated`` heads rotated, the others as they are."""
    return np.concatenate([rotate(x[:, :rotated], pos, table), f64(x[:, rotated:])], axis=1)


def expanded_heads(q: np.ndarray, keys: np.ndarray, values: np.ndarray, key: np.ndarray, pos: np.ndarray,
                   table: np.ndarray) -> np.ndarray:
    """q [n, heads, nope+R], keys [n, heads, nope], values [n, heads, V], key [n, R]: the rotated part of every head's,
    pos [n], table [positions, R] -> queries, keys and values [n, 3*heads, W], zeros behind what is narrower."""
    nope, heads = keys.shape[-1], keys.shape[1]
    shared = np.repeat(rotate(key, pos, table)[:, None], heads, axis=1)
    parts = [np.concatenate([f64(q[..., :nope]), rotate(q[..., nope:], pos, table)], axis=-1),
             np.concatenate([f64(keys), shared], axis=-1), f64(values)]
    width = max(part.shape[-1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, 0), (0, width - part.shape[-1]))) for part in parts], axis=1)


def softmax_with_temperature(logits: np.ndarray, temperature: np.ndarray, cold: float = 1e-5) -> np.ndarray:
    """logits [b, V], temperature [b] -> probabilities [b, V]; where the temperature is ``cold`` or less, equal parts
    for the largest logits (MLC contract, section 1.2)."""
    distance = f64(logits) - f64(logits).max(-1, keepdims=True)
    warm = f64(temperature)[:, None] > cold
    weights = np.where(warm, np.exp(distance / np.where(warm, f64(temperature)[:, None], 1.0)), distance == 0)
    return weights / weights.sum(-1, keepdims=True)


def apply_penalty(logits: np.ndarray, rows: np.ndarray, tokens: np.ndarray, counts: np.ndarray,
                  penalties: np.ndarray) -> np.ndarray:
    """logits [b, V]; for each i, row ``rows[i]`` has seen ``tokens[i]`` ``counts[i]`` times; penalties [k, 3]: what
    holds for it: presence, frequency, repetition -> logits [b, V] (MLC contract, section 1.2)."""
    result = f64(logits).copy()
    presence, frequency, repetition = f64(penalties).T
    values = result[rows, tokens] - presence - counts * frequency
    result[rows, tokens] = np.where(values > 0, values / repetition, values * repetition)
    return result


def apply_bitmask(logits: np.ndarray, rows: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """logits f32 [b, V], rows [s]: numbers of masked ones, bits int32 [b, ceil(V / 32)] -> logits with the lowest
    float32 for every token of a masked row whose bit is 0 (UpdateWithMask of MLC's cpp/serve/logit_processor.cc)."""
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, :logits.shape[1]].astype(bool)
    masked = np.isin(np.arange(len(logits)), rows)
    return np.where(masked[:, None] & ~allowed, f64(np.finfo(np.float32).min), f64(logits))


def multinomial(probs: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """probs [s, V], shares [s] -> tokens int32 [s]: the first up to which the sum exceeds that share of the whole (MLC
    contract, section 1.3)."""
    sums = f64(probs).cumsum(-1)
    return (sums > f64(shares)[:, None] * sums[:, -1:]).argmax(-1).astype(np.int32)


def top_p_sizes(probs: np.ndarray, top_p: np.ndarray) -> np.ndarray:
    """probs [b, V] in falling order, top_p [b] -> int [b]: how few of the first reach ``top_p`` together, all from 1
    on."""
    sums = f64(probs).cumsum(-1)
    reached = sums >= f64(top_p)[:, None]
    return np.where((f64(top_p) < 1) & reached.any(-1), reached.argmax(-1) + 1, probs.shape[1])


def renormalize_top_p(probs: np.ndarray, top_p: np.ndarray) -> np.ndarray:
    """probs [b, V], top_p [b] -> [b, V]: the most likely that reach ``top_p`` together, and those as likely as the last
    of them, over their sum; 0 for the others (MLC contract, section 1.3)."""
    ranked = -np.sort(-f64(probs), axis=-1)
    last = np.take_along_axis(ranked, top_p_sizes(ranked, top_p)[:, None] - 1, axis=-1)
    kept = np.where(f64(probs) >= last, f64(probs), 0.0)
    return kept / kept.sum(-1, keepdims=True)


def sort_pass(values: np.ndarray, tokens: np.ndarray, shift: int, bits: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """values f32 [b, V], tokens [b, V] -> both in falling order of ``bits`` bits of the values from bit ``shift`` on,
    equals as they were."""
    digits = values.view(np.uint32) >> np.uint32(shift) & np.uint32((1 << bits) - 1)
    order = np.argsort(-digits.astype(np.int64), axis=-1, kind="stable")
    return np.take_along_axis(values, order, -1), np.take_along_axis(tokens, order, -1)


def verify_drafts(probs: np.ndarray, nodes: np.ndarray, draft_probs: np.ndarray, tokens: np.ndarray,
                  first_child: np.ndarray, next_sibling: np.ndarray,
                  shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """probs [n, V] after each node, nodes [trees]: roots, draft_probs [n, V] that each node was drawn from, tokens,
    first_child, next_sibling [n], shares [n] -> probs, changed where children were refused, and the last nodes accepted
    (MLC contract, section 1.3)."""
    probs, nodes, draft_probs = f64(probs).copy(), nodes.copy(), f64(draft_probs)
    for tree, node in enumerate(nodes):
        child = first_child[node]
        while child >= 0:
            rest = np.maximum(probs[node] - draft_probs[child], 0.0)
            token = tokens[child]
            if probs[node, token] >= shares[child] * draft_probs[child, token] or rest.sum() < 1e-7:
                node, child = child, first_child[child]
            else:
                probs[node] = rest / rest.sum()
                child = next_sibling[child]
        nodes[tree] = node
    return probs, nodes


def whole_vocabulary(logits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """logits f32 [b, V'], places int32 [V] -> f32 [b, V]: of each token its column of ``logits``, or the lowest float32
    where it has none (a negative place)."""
    return np.where(places >= 0, logits[:, places], np.finfo(np.float32).min).astype(np.float32)


def peak(x: np.ndarray, factors: np.ndarray, steps: int) -> np.ndarray:
    """x [width], factors [2]: a, b -> [width] after ``steps`` times x = x * a + b; of int32 x = x + the sum over bytes
    of a * b."""
    if x.dtype == np.int32:
        a, b = factors.view(np.uint8).astype(np.int32).reshape(2, 4)
        return x + steps * (a @ b)
    a, b = f64(factors)
    x = f64(x)
    for _ in range(steps):
        x = x * a + b
    return x
