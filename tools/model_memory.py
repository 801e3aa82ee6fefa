#!/usr/bin/env python3
"""Memory of the published shapes per weight format, as the table of docs/mlc.md: what a plan (``build.py --target
android --dry-run --json``) says of weights and intermediate results, and MLC's cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from blockffn_mlc.builder import make_plan
from blockffn_mlc.config import PRESETS, BlockFFNConfig
from blockffn_mlc.layers import MLC_CACHES
from blockffn_mlc.mlc.kv_cache import cache_bytes
from blockffn_mlc.mlc.package import estimated_bytes
from targets import find_target

QUANTIZATIONS = ("q4f16_1", "q4f32_1", "q0f16", "q0f32")
HEADER = ["| model | format | weights MB | cache MB | rest MB | total MB |", "|---|---|---|---|---|---|"]


def row(model: str, quantization: str, kind: str | None = None) -> str:
    """One line of the table, in megabytes of 10^6 bytes, for the whole context window. ``kind``: of MLC's cache (None:
    the default), for models with a choice."""
    config = BlockFFNConfig.from_name(model)
    plan = make_plan(config, find_target("android"), quantization, mlc=True, mlc_cache=kind if config.is_mla else None)
    cache, total = cache_bytes(plan.build), estimated_bytes(plan)
    sizes = (plan.weight_bytes, cache, total - plan.weight_bytes - cache, total)
    return f"| {model} | `{quantization}` | " + " | ".join(f"{size / 1e6:.0f}" for size in sizes) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mlc-cache", choices=MLC_CACHES,
                        help="kind of MLC's cache for latent attention (default: mla)")
    arguments = parser.parse_args()
    for line in HEADER:
        print(line)
    for model in PRESETS:
        for quantization in QUANTIZATIONS:
            print(row(model, quantization, arguments.mlc_cache), flush=True)


if __name__ == "__main__":
    main()
