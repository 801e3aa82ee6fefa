"""``verify``: whether the kernels of an artifact compute what they should, on this device."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from blockffn_mlc.errors import UserError

from ..artifact import Artifact
from .common import add_command, add_rpc, connect_rpc, load_engine, note, print_json

if TYPE_CHECKING:
    from ..selftest.checks import Result


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers, "verify", "hold every kernel against numpy on this device", run,
        "Each kernel runs by itself on random inputs and the artifact's weights (of one layer that calls it), for "
        "several numbers of tokens and unions of experts; results are compared with the equations in float64, and "
        "memory beside tensors is watched. The check of a new phone or driver. A mismatch is exit code 1.")
    add_rpc(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> None:
    from ..selftest.checks import TOKENS

    if args.rpc_folder is not None and args.rpc is None:
        raise UserError("--rpc-folder: expected --rpc beside it")
    artifact = Artifact.open(args.artifact)
    device, product, checked = _there(args, artifact) if args.rpc else _here(args)
    results = []
    if not args.json:
        print(f"{'kernel':<18} {'made by':<14} {'format':<18} {'calls':>5} {'NMSE':>8} {'bound':>8}  largest error")
    for result in checked:
        results.append(result)
        if not args.json:
            print(_line(result), flush=True)
    wrong = [result for result in results if result.problem]
    if args.json:
        tokens = [n for n in TOKENS if n <= artifact.prefill_chunk_size]
        print_json({"artifact": artifact.name, "device": device, "product": product,
                    "tokens": tokens, "ok": not wrong, "kernels": [result.to_dict() for result in results]})
    if wrong:
        raise UserError(f"{artifact.path}: {len(wrong)} of {len(results)} kernels failed on "
                        f"{device}: {wrong[0].kernel} {wrong[0].problem}")
    note(f"{len(results)} kernels verified on {device}")


def _here(args: argparse.Namespace) -> tuple[str, str, Iterable[Result]]:
    """The device's name and its own, and the results as they come."""
    from ..selftest.checks import check_kernels

    engine = load_engine(args)
    return engine.device.name, engine.device.product, check_kernels(engine)


def _there(args: argparse.Namespace, artifact: Artifact) -> tuple[str, str, Iterable[Result]]:
    """The same of a server's machine; results come all at once."""
    from ..bench.measure import Setup
    from ..rpc.service import verify
    from ..selftest.checks import Result

    if args.mmap or args.pin:
        raise UserError("--mmap, --pin: expected no --rpc beside them")
    setup = Setup(args.artifact, args.threads, args.device)
    with connect_rpc(args) as client:
        found = client.process(setup, client.send(artifact, note))(verify)
    return found["device"], found["product"], [Result(**result) for result in found["results"]]


def _line(result: Any) -> str:
    head = f"{result.kernel:<18} {result.factory:<14} {result.format:<18} {result.calls:>5}"
    if result.problem:
        return f"{head}  FAILED: {result.problem}"
    return f"{head} {result.nmse:>8.1e} {result.bound:>8.1e} {result.error:>6.0%} of allowed"
