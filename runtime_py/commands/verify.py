"""``verify``: whether the kernels of an artifact compute what they should, on this device."""

from __future__ import annotations

import argparse
from typing import Any

from blockffn_mlc.errors import UserError

from .common import add_command, load_engine, note, print_json


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers, "verify", "hold every kernel against numpy on this device", run,
        "Each kernel runs by itself on random inputs and the artifact's weights (of one layer that calls it), for "
        "several numbers of tokens and unions of experts; results are compared with the equations in float64, and "
        "memory beside tensors is watched. The check of a new phone or driver. A mismatch is exit code 1.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> None:
    from ..selftest.checks import TOKENS, check_kernels

    engine = load_engine(args)
    results = []
    if not args.json:
        print(f"{'kernel':<18} {'made by':<14} {'format':<18} {'calls':>5} {'NMSE':>8} {'bound':>8}  largest error")
    for result in check_kernels(engine):
        results.append(result)
        if not args.json:
            print(_line(result), flush=True)
    wrong = [result for result in results if result.problem]
    if args.json:
        tokens = [n for n in TOKENS if n <= engine.artifact.prefill_chunk_size]
        print_json({"artifact": engine.artifact.name, "device": engine.device.name, "product": engine.device.product,
                    "tokens": tokens, "ok": not wrong, "kernels": [result.to_dict() for result in results]})
    if wrong:
        raise UserError(f"{engine.artifact.path}: {len(wrong)} of {len(results)} kernels failed on "
                        f"{engine.device.name}: {wrong[0].kernel} {wrong[0].problem}")
    note(f"{len(results)} kernels verified on {engine.device.name}")


def _line(result: Any) -> str:
    head = f"{result.kernel:<18} {result.factory:<14} {result.format:<18} {result.calls:>5}"
    if result.problem:
        return f"{head}  FAILED: {result.problem}"
    return f"{head} {result.nmse:>8.1e} {result.bound:>8.1e} {result.error:>6.0%} of allowed"
