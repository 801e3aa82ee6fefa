"""``score``: teacher-forced logits, router scores and perplexity of given tokens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from blockffn_mlc.errors import UserError

from ..engine import perplexity, token_log_probs
from ..files import check_output, writing_array
from .common import add_command, add_input, add_split, input_windows, load_engine, positive_int, print_json


def add_parser(subparsers: Any) -> None:
    parser = add_command(subparsers, "score", "perplexity, logits and router scores of given tokens", run)
    add_input(parser, "--ids", "--text-file")
    add_split(parser)
    parser.add_argument("--logits", metavar="OUT.npy", help="write float32 [T, V]: row t predicts token t + 1")
    parser.add_argument("--router", metavar="OUT.npy", help="write float32 [L, T, E]: scores after the router's norm, "
                        "0 for inactive experts")
    parser.add_argument("--chunk", type=positive_int, metavar="N",
                        help="tokens at a time; results do not depend on it")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> None:
    for path in (path for path in (args.logits, args.router) if path is not None):
        check_output(path)
    if args.logits and args.router and Path(args.logits).resolve() == Path(args.router).resolve():
        raise UserError(f"{args.logits}: --logits and --router need different files")
    engine = load_engine(args)
    config = engine.artifact.config
    windows = input_windows(args, engine)
    total = sum(map(len, windows))
    log_probs, row = [], 0
    with (writing_array(args.logits, (total, config.vocab_size)) as logits,
          writing_array(args.router, (config.num_hidden_layers, total, config.num_experts)) as router):
        for ids in windows:
            targets = ids[1:]
            for output in engine.score_chunks(ids, args.chunk):
                count = len(output.logits)
                if logits is not None:
                    logits[row:row + count] = output.logits
                if router is not None:
                    router[:, row:row + count] = output.router_scores
                log_probs.append(token_log_probs(output.logits[:len(targets)], targets[:count]))
                targets, row = targets[count:], row + count
    log_probs = np.concatenate(log_probs)
    result = perplexity(log_probs) if len(log_probs) else None
    if result is not None and not np.isfinite(result):
        raise UserError(f"{args.artifact}: the perplexity is {result}; are the weights damaged?")
    if args.json:
        print_json({"artifact": engine.artifact.name, "tokens": total, "predicted": len(log_probs),
                    "perplexity": result, "logits": args.logits, "router": args.router})
    elif result is None:
        print("perplexity n/a: a single token predicts nothing")
    else:
        print(f"perplexity {result:.4f} over {len(log_probs)} predicted tokens")
