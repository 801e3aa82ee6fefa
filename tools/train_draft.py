"""Train the demo model's EAGLE draft on the CPU, its target frozen.

    python tools/demo_data.py
    python tools/train_draft.py --output blockffn_mlc/demo/draft

Resumes from its last checkpoint (build/demo/NAME.pt); the result does not depend on interruptions. A line of progress
holds the step, the entropy of the target's distribution, and of every level the cross-entropy and the regression loss.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo_data import FOLDER, read_documents, token_stream, write  # noqa: E402
from train_demo import learning_rate  # noqa: E402

from blockffn_mlc.checkpoint.draft import expected_shapes  # noqa: E402
from blockffn_mlc.draft_config import DraftConfig  # noqa: E402
from blockffn_mlc.eagle_reference import EagleReference  # noqa: E402
from blockffn_mlc.errors import UserError  # noqa: E402
from blockffn_mlc.reference import Reference  # noqa: E402

TARGET = Path("blockffn_mlc/demo")
BATCH_TOKENS = 4096
SHORT, LONG, LONG_SHARE = 256, 1024, 0.1
# Heads as wide as what the target rotates, so that one table serves both; each two of them share keys.
HEADS, KV_HEADS = 8, 4
WEIGHT_DECAY, BETAS, CLIP = 0.1, (0.9, 0.95), 1.0
LOG_EVERY, SAVE_EVERY = 20, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the trained draft")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--inner", type=int, default=512, help="width of the feed-forward network")
    parser.add_argument("--frequent", type=int, default=768, help="tokens that the draft can name")
    parser.add_argument("--levels", type=int, default=2, help="levels of its own states that the draft is trained on")
    parser.add_argument("--regression", type=float, default=1.0, help="weight of the loss on the hidden states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args)
    started = time.monotonic()
    while run.step < args.steps:
        run.train_step()
        if run.step % LOG_EVERY == 0:
            print(f"step {run.step}", *(f"{value:.4f}" for value in run.recent_means()),
                  f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if run.step % SAVE_EVERY == 0:
            run.save()
    run.save()
    export(run.draft, args.output)


class Run:
    """Everything a training run consists of; ``save`` and the constructor carry it over an interruption."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.checkpoint = FOLDER / f"{args.output.name}.pt"
        self.stream = token_stream(Tokenizer.from_file(str(FOLDER / "tokenizer.json")),
                                   read_documents(FOLDER / "train.txt"))
        target = Reference.load(TARGET)
        hidden = target.config.hidden_size
        config = DraftConfig(hidden, 1, args.inner, HEADS, KV_HEADS, hidden // HEADS)
        counts = torch.bincount(self.stream, minlength=target.config.vocab_size)
        frequent = counts.argsort(descending=True, stable=True)[:args.frequent]
        self.draft = EagleReference(config, initial_tensors(config, args.seed), target, frequent)
        self.tensors = self.draft.tensors
        matrices = [tensor for tensor in self.tensors.values() if tensor.ndim > 1]
        vectors = [tensor for tensor in self.tensors.values() if tensor.ndim == 1]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": WEIGHT_DECAY},
                                            {"params": vectors, "weight_decay": 0.0}], betas=BETAS, fused=True)
        self.step, self.recent = 0, []
        if self.checkpoint.exists():
            self._resume()

    def train_step(self) -> None:
        args = self.args
        torch.manual_seed(args.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, args.steps)
        windows = self._windows()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                target = self.draft.target.forward(windows)
            levels = rollout(self.draft, windows[:, 1:], target.last_hidden[:, :-1], args.levels)
            logits = [self.draft.logits(drafted) for drafted in levels]
        wanted = target.logits[:, 1:, self.draft.frequent].softmax(-1)
        losses = []
        for level, (drafted, scores) in enumerate(zip(levels, logits)):
            # The first rows of a level would continue states that no window holds.
            ce = -(wanted[:, level:] * scores[:, level:].log_softmax(-1)).sum(-1).mean()
            losses += [ce, F.smooth_l1_loss(drafted[:, level:].float(), target.last_hidden[:, 1 + level:])]
        loss = sum(losses[::2]) + args.regression * sum(losses[1::2])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        entropy = -(wanted * wanted.clamp(min=1e-9).log()).sum(-1).mean()
        # The cross-entropies cannot fall below the entropy of what they learn.
        self.recent.append([entropy.item(), *(value.item() for value in losses)])
        self.step += 1

    def _windows(self) -> Tensor:
        """Random windows of the training stream, int64 [B, T + 1]."""
        length = SHORT if self.step < (1 - LONG_SHARE) * self.args.steps else LONG
        starts = torch.randint(len(self.stream) - length, (BATCH_TOKENS // length,))
        return torch.stack([self.stream[start:start + length + 1] for start in starts.tolist()])

    def recent_means(self) -> list[float]:
        means = torch.tensor(self.recent, dtype=torch.float64).mean(0).tolist()
        self.recent = []
        return means

    def save(self) -> None:
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save({"step": self.step, "tensors": self.tensors, "optimizer": self.optimizer.state_dict(),
                    "recent": self.recent}, temporary)
        os.replace(temporary, self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state["tensors"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.recent = state["step"], state["recent"]
        print(f"resuming {self.checkpoint} at step {self.step}", file=sys.stderr)


def rollout(draft: EagleReference, ids: Tensor, hidden: Tensor, levels: int) -> list[Tensor]:
    """What the draft computes from the target's states and then from its own: per level d [B, T, H].

    Row i of level l is drafted from row i - 1 of the level before; it sees, as when drafting a chain, level 1 up to row
    i - l + 1 and its own ancestors. (Training-time test of EAGLE-3, arXiv 2503.01840, and of HASS, arXiv 2408.15766.)
    """
    rows = torch.arange(ids.shape[1])
    distance = rows[:, None] - rows
    drafted, cache, results = hidden, None, []
    for level in range(levels):
        seen = [distance >= level] + [distance == level - other for other in range(1, level + 1)]
        drafted, cache = draft.forward(ids, drafted, rows, cache, torch.cat(seen, 1))
        results.append(drafted)
        drafted = torch.cat([hidden[:, :1].to(drafted.dtype), drafted[:, :-1]], 1)
    return results


def initial_tensors(config: DraftConfig, seed: int) -> dict[str, Tensor]:
    """Trainable float32 tensors under the released names: norms 1, matrices normal with variance 1 / fan-in."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.ones(shape) if len(shape) == 1 else
               torch.randn(shape, generator=generator) * shape[-1] ** -0.5
               for name, shape in expected_shapes(config, has_bias=False).items()}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def export(draft: EagleReference, folder: Path) -> None:
    """Write a folder in the released format: config.json, model.safetensors (bfloat16), freq_V'.json (falling)."""
    folder.mkdir(parents=True, exist_ok=True)
    target = draft.target.config
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **asdict(draft.config),
              "rms_norm_eps": target.rms_norm_eps, "vocab_size": target.vocab_size, "torch_dtype": "bfloat16"}
    write(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write(folder / f"freq_{len(draft.frequent)}.json", json.dumps(draft.frequent.tolist()) + "\n")
    weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in draft.tensors.items()}
    (folder / "model.tmp").write_bytes(save(weights, metadata={"format": "pt"}))
    os.replace(folder / "model.tmp", folder / "model.safetensors")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
