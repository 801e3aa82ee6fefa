"""Measure a trained checkpoint on its held-out text: perplexity, sparsity, use of the experts.

    python tools/demo_eval.py blockffn_mlc/demo [--text FILE] [--prompt TEXT]

Documents are separated by an empty line; a long one is cut into windows of the model's context, each starting
with the beginning token. CLS windows are disjoint and do not cross documents. Weights are used as stored, in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo_data import BOS, EOS, encode, read_documents  # noqa: E402

from blockffn_mlc.errors import UserError  # noqa: E402
from blockffn_mlc.reference import Reference  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, help="default: heldout.txt in the model's folder")
    parser.add_argument("--prompt", help="continue this text instead, sampling at temperature 0.8, top-p 0.9")
    args = parser.parse_args()
    model = Reference.load(args.model)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    if args.prompt is not None:
        print(sample(model, tokenizer, args.prompt))
    else:
        print(json.dumps(measure(model, tokenizer, read_documents(args.text or args.model / "heldout.txt")), indent=2))


@torch.no_grad()
def measure(model: Reference, tokenizer: Tokenizer, documents: list[str]) -> dict[str, object]:
    """Held-out figures, shares in percent, as the README's model card lists them."""
    config = model.config
    loss, active = 0.0, []
    for ids in windows(tokenizer, documents, config.max_position_embeddings):
        output = model.forward(ids[None, :-1])
        loss += F.cross_entropy(output.logits[0], ids[1:], reduction="sum").item()
        active.append(output.router_logits[:, 0] > 0)
    tokens = sum(window.shape[1] for window in active)
    every = torch.cat(active, 1)
    counts, use = every.sum(2).float(), every.float().mean(1)
    return {
        "tokens": tokens,
        "perplexity": round(math.exp(loss / tokens), 3),
        "bits_per_byte": round(loss / math.log(2) / sum(len(text.encode()) for text in documents), 4),
        "tls": percent(1 - every.float().mean()),
        **{f"cls_{length}": percent(1 - union_share(active, length)) for length in (8, 32, 64)},
        "tls_per_layer": [percent(1 - layer.float().mean()) for layer in every],
        "experts_active_on_half_a_percent": percent((use >= 0.005).float().mean()),
        "least_and_most_used_expert": [percent(use.min()), percent(use.max())],
        "active_experts_per_token_and_layer": {
            "mean": round(counts.mean().item(), 2), "standard_deviation": round(counts.std().item(), 2),
            "percentiles_5_50_95": torch.quantile(counts.flatten(), torch.tensor([.05, .5, .95])).tolist(),
        },
    }


def windows(tokenizer: Tokenizer, documents: list[str], context: int) -> list[Tensor]:
    """Documents as ids, int64 [<= context + 1] each, every window starting with the beginning token."""
    result = []
    for document in documents:
        ids = encode(tokenizer, document)[1:]
        result += [torch.tensor([BOS, *ids[start:start + context]]) for start in range(0, len(ids), context)]
    return result


def union_share(active: list[Tensor], length: int) -> Tensor:
    """Share of experts active anywhere in a window, averaged over disjoint windows; ``active`` holds bool [L, T, E]."""
    chunks = [part[:, : part.shape[1] // length * length].unflatten(1, (-1, length)) for part in active]
    return torch.cat([chunk.any(2) for chunk in chunks], 1).float().mean()


def percent(share: Tensor) -> float:
    return round(100 * share.item(), 2)


@torch.no_grad()
def sample(model: Reference, tokenizer: Tokenizer, prompt: str, tokens: int = 200) -> str:
    """Continue ``prompt`` by up to ``tokens`` tokens, seed 0."""
    generator = torch.Generator().manual_seed(0)
    ids = encode(tokenizer, prompt)[:-1]
    while len(ids) < model.config.max_position_embeddings and tokens > 0:
        probability = (model.forward(torch.tensor([ids])).logits[0, -1] / 0.8).softmax(-1)
        ranked, order = probability.sort(descending=True)
        ranked[ranked.cumsum(0) - ranked > 0.9] = 0
        ids.append(order[ranked.multinomial(1, generator=generator)].item())
        tokens -= 1
        if ids[-1] == EOS:
            break
    return tokenizer.decode(ids)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
