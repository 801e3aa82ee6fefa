"""``generate``: continue a prompt."""

from __future__ import annotations

import argparse
import secrets
from dataclasses import asdict
from typing import Any

from ..sampling import Sampling
from .common import (
    add_command,
    add_drafting,
    add_input,
    add_sampling,
    given_sampling,
    input_ids,
    load_engine,
    note,
    print_json,
)


def add_parser(subparsers: Any) -> None:
    parser = add_command(subparsers, "generate", "continue a prompt, streaming the text", run,
                         "Text goes to stdout, figures to stderr; greedy unless a temperature is given.")
    add_input(parser, "--prompt", "--prompt-file", "--ids")
    add_sampling(parser, "Default: greedy.")
    add_drafting(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object (text, ids, figures) instead")


def run(args: argparse.Namespace) -> None:
    given = given_sampling(args)
    if given.get("temperature"):  # sampled text can always be repeated: the seed is reported
        given.setdefault("seed", secrets.randbits(32))
    sampling = Sampling(**given)
    ignored = [f"--{name.replace('_', '-')}" for name in ("top_p", "top_k", "seed") if name in given]
    if sampling.greedy and ignored:
        note(f"note: {', '.join(ignored)}: no effect without --temperature, the most likely token is taken")
    engine = load_engine(args)
    generation = engine.generate(input_ids(args, engine), args.max_tokens, sampling, draft=args.draft,
                                 tree_size=args.tree_size)
    for token in generation:
        if not args.json:
            print(token.text if engine.has_tokenizer else f"{token.id} ", end="", flush=True)
    if args.json:
        print_json({"artifact": engine.artifact.name, "text": generation.text, "ids": generation.ids,
                    "finish_reason": generation.finish_reason, "draft": generation.draft, **generation.stats.to_dict(),
                    "load_s": engine.load_seconds, "device": engine.device.name, "threads": engine.threads,
                    "sampling": asdict(sampling)})
    else:
        print()
        note(f"\n{generation.figures()}" + ("" if sampling.greedy else f", seed {sampling.seed}"))
