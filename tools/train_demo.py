"""Train the demo model on the CPU with the BlockFFN paper's objectives.

    python tools/demo_data.py
    python tools/train_demo.py --output blockffn_mlc/demo        the demo model
    python tools/train_demo.py --dense --output build/demo/dense  the same without the sparsity losses

Resumes from its last checkpoint (build/demo/NAME.pt); the result does not depend on interruptions.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo_data import BOS, EOS, FOLDER, UNK, read_documents, token_stream, write  # noqa: E402
from demo_losses import AdaptiveFactor, budget_loss, chunk_loss, chunk_sparsity, idle_loss, locality_loss  # noqa: E402

from blockffn_mlc.config import BlockFFNConfig  # noqa: E402
from blockffn_mlc.errors import UserError  # noqa: E402
from blockffn_mlc.reference import Reference  # noqa: E402

CONFIG = BlockFFNConfig(
    hidden_size=256, num_hidden_layers=4, num_attention_heads=4, vocab_size=2048, num_experts=32, expert_size=32,
    attention_type="mla", q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=32,
    ffn_type="block", norm_after_router="rms", rms_norm_eps=1e-5, scale_emb=12.0, dim_model_base=128.0,
    scale_depth=1.4, tie_word_embeddings=True, max_position_embeddings=1024, bos_token_id=BOS, eos_token_id=(EOS,))
BATCH_TOKENS = 4096
CLS_LENGTH = 8
# Most steps see short windows, which are cheaper; the last ones teach the whole context.
SHORT, LONG, LONG_SHARE = 256, 1024, 0.1
LEARNING_RATE, WARMUP, FINAL_SHARE = 3e-3, 100, 0.02
WEIGHT_DECAY, BETAS, CLIP = 0.1, (0.9, 0.95), 1.0
# The sparsity losses start once the network models language roughly, and grow to their full weights.
SPARSE_FROM, SPARSE_RAMP = 700, 100
LOG_EVERY, SAVE_EVERY = 10, 50
# Every fourth held-out chapter is bundled with the model.
HELD_OUT_SAMPLE = 4
COLUMNS = ("step", "learning_rate", "lm_loss", "locality_loss", "chunk_loss", "chunk_factor",
           "budget_loss", "idle_loss", "tls", "cls_8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the trained model")
    parser.add_argument("--dense", action="store_true", help="leave out both sparsity losses")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--locality", type=float, default=1.5e-2, help="weight of the locality loss")
    parser.add_argument("--chunk", type=float, default=0.2, help="first weight of the chunk loss")
    parser.add_argument("--chunk-length", type=int, default=16)
    parser.add_argument("--budget", type=float, default=3.0, help="weight of the budget losses")
    parser.add_argument("--token-share", type=float, default=0.19, help="target share of active experts per token")
    parser.add_argument("--chunk-share", type=float, default=0.31, help="the same for eight consecutive tokens")
    parser.add_argument("--idle", type=float, default=0.5, help="weight of the idle loss")
    parser.add_argument("--floor", type=float, default=0.03, help="share of tokens that every expert is to serve")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args)
    started = time.monotonic()
    while run.step < args.steps:
        run.train_step()
        if run.step % LOG_EVERY == 0:
            row = run.log()
            print(" ".join(f"{name} {row[name]:.4g}" for name in COLUMNS),
                  f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if run.step % SAVE_EVERY == 0:
            run.save()
    run.save()
    export(run.tensors, args.output, run.history)


class Run:
    """Everything a training run consists of; ``save`` and the constructor carry it over an interruption."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.checkpoint = FOLDER / f"{args.output.name}.pt"
        self.stream = token_stream(Tokenizer.from_file(str(FOLDER / "tokenizer.json")),
                                   read_documents(FOLDER / "train.txt"))
        self.tensors = initial_tensors(CONFIG, args.seed)
        self.model = Reference(CONFIG, self.tensors, args.dropout)
        matrices = [tensor for tensor in self.tensors.values() if tensor.ndim > 1]
        vectors = [tensor for tensor in self.tensors.values() if tensor.ndim == 1]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": WEIGHT_DECAY},
                                            {"params": vectors, "weight_decay": 0.0}], betas=BETAS, fused=True)
        self.chunk_factor = AdaptiveFactor(args.chunk, window=50, stable=SPARSE_FROM + SPARSE_RAMP)
        self.step, self.recent, self.history = 0, [], []
        if self.checkpoint.exists():
            self._resume()

    def train_step(self) -> None:
        args = self.args
        torch.manual_seed(args.seed * 1_000_003 + self.step)
        rate = learning_rate(self.step, args.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        windows = self._windows()
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model.forward(windows[:, :-1])
        lm = F.cross_entropy(output.logits.flatten(0, 1), windows[:, 1:].flatten())
        logits = output.router_logits
        ramp = 0.0 if args.dense else min(1.0, max(0.0, (self.step - SPARSE_FROM) / SPARSE_RAMP))
        with torch.set_grad_enabled(ramp > 0):
            locality, chunk = locality_loss(logits), chunk_loss(logits, args.chunk_length)
            budget = budget_loss(logits, 1, args.token_share) + budget_loss(logits, CLS_LENGTH, args.chunk_share)
            idle = idle_loss(logits, args.floor)
            sparse = (args.locality * locality + self.chunk_factor.value * chunk + args.budget * budget
                      + args.idle * idle)
        (lm + ramp * sparse).backward()
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.recent.append((rate, lm.item(), locality.item(), chunk.item(), self.chunk_factor.value, budget.item(),
                            idle.item(), chunk_sparsity(logits, 1), chunk_sparsity(logits, CLS_LENGTH)))
        self.chunk_factor.update(chunk.item())
        self.step += 1

    def _windows(self) -> Tensor:
        """Random windows of the training stream, int64 [B, T + 1]."""
        length = SHORT if self.step < (1 - LONG_SHARE) * self.args.steps else LONG
        starts = torch.randint(len(self.stream) - length, (BATCH_TOKENS // length,))
        return torch.stack([self.stream[start:start + length + 1] for start in starts.tolist()])

    def log(self) -> dict[str, float]:
        """Fold the steps since the last call into one row of the history."""
        means = torch.tensor(self.recent, dtype=torch.float64).mean(0).tolist()
        self.recent = []
        self.history.append(dict(zip(COLUMNS, [self.step, *means])))
        return self.history[-1]

    def save(self) -> None:
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save({"step": self.step, "tensors": self.tensors, "optimizer": self.optimizer.state_dict(),
                    "chunk_factor": vars(self.chunk_factor),
                    "recent": self.recent, "history": self.history}, temporary)
        os.replace(temporary, self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state["tensors"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self.chunk_factor).update(state["chunk_factor"])
        self.step, self.recent, self.history = state["step"], state["recent"], state["history"]
        print(f"resuming {self.checkpoint} at step {self.step}", file=sys.stderr)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to FINAL_SHARE of the peak."""
    if step < WARMUP:
        return LEARNING_RATE * (step + 1) / WARMUP
    cosine = 0.5 + 0.5 * math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP))
    return LEARNING_RATE * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def initial_tensors(config: BlockFFNConfig, seed: int) -> dict[str, Tensor]:
    """Trainable float32 tensors under their canonical names: norms 1, matrices normal with variance 1 / fan-in."""
    heads, hidden, experts, size = (config.num_attention_heads, config.hidden_size, config.num_experts,
                                    config.expert_size)
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_a_proj.weight": (config.q_lora_rank, hidden),
        "self_attn.q_a_layernorm.weight": (config.q_lora_rank,),
        "self_attn.q_b_proj.weight": (heads * config.qk_head_dim, config.q_lora_rank),
        "self_attn.kv_a_proj_with_mqa.weight": (config.kv_lora_rank + config.qk_rope_head_dim, hidden),
        "self_attn.kv_a_layernorm.weight": (config.kv_lora_rank,),
        "self_attn.kv_b_proj.weight": (heads * (config.qk_nope_head_dim + config.head_dim), config.kv_lora_rank),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.router_proj.weight": (experts, hidden),
        "mlp.router_norm.weight": (experts,),
        "mlp.up_proj": (experts, size, hidden),
        "mlp.down_proj": (experts, hidden, size),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {"model.embed_tokens.weight": 0.05 * torch.randn(config.vocab_size, hidden, generator=generator),
               "model.norm.weight": torch.ones(hidden)}
    for layer in range(config.num_hidden_layers):
        for name, shape in shapes.items():
            # All experts' down projections are summed, so their inputs count together.
            fan_in = experts * size if name == "mlp.down_proj" else shape[-1]
            tensors[f"model.layers.{layer}.{name}"] = (
                torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * fan_in ** -0.5)
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def export(tensors: dict[str, Tensor], folder: Path, history: list[dict[str, float]]) -> None:
    """Write a checkpoint folder in the released format, its loss history and a sample of the held-out text."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG.to_dict() | {"architectures": ["MiniCPMForCausalLM"], "torch_dtype": "bfloat16",
                                 "v_head_dim": CONFIG.head_dim, "rope_scaling": None, "pad_token_id": UNK}
    config["eos_token_id"] = EOS
    del config["rope_scaling_factor"]  # the released format says rope_scaling
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True, "temperature": 0.8, "top_p": 0.9}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                 "unk_token": "<unk>", "pad_token": "<unk>", "model_max_length": CONFIG.max_position_embeddings}
    for name, content in (("config", config), ("generation_config", generation), ("tokenizer_config", tokenizer)):
        write(folder / f"{name}.json", json.dumps(content, indent=2) + "\n")
    weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors.items()}
    (folder / "model.tmp").write_bytes(save(weights, metadata={"format": "pt"}))
    os.replace(folder / "model.tmp", folder / "model.safetensors")
    shutil.copyfile(FOLDER / "tokenizer.json", folder / "tokenizer.json")
    sample = read_documents(FOLDER / "heldout.txt")[::HELD_OUT_SAMPLE]
    write(folder / "heldout.txt", "\n\n".join(sample) + "\n")
    with open(folder / "loss.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: float(f"{value:.5g}") for name, value in row.items()} for row in history)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
