"""``mlc-check``: whether MLC's engine could run an artifact."""

from __future__ import annotations

import argparse
from typing import Any

from blockffn_mlc.errors import UserError

from .common import add_command, load_engine, note, print_json


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers, "mlc-check", "go through what MLC's engine does with an artifact", run,
        "Loads the library and its weights as that engine does, creates its cache, prefills, decodes, batches, forks, "
        "verifies drafts and samples, and holds every result against this runtime. The artifact is one that was built "
        "with MLC's functions (build.py --mlc). A step that goes wrong is exit code 1.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> None:
    from ..mlc.check import check, presence

    engine = load_engine(args)
    steps = []
    for step in check(engine):
        steps.append(step)
        if not args.json:
            print(f"{'ok' if step.ok else 'FAILED':<7}{step.name:<17}{step.detail}", flush=True)
    functions = presence(engine.library.has, engine.device.kind)
    if args.json:
        print_json({"artifact": engine.artifact.name, "device": engine.device.name,
                    "ok": all(step.ok for step in steps), "steps": [step.to_dict() for step in steps],
                    "functions": functions})
    else:
        for state in ("present", "missing", "optional, absent"):
            print(f"{state}: {', '.join(name for name, found in functions.items() if found == state) or 'none'}")
    wrong = [step for step in steps if not step.ok]
    if wrong:
        raise UserError(f"{engine.artifact.path}: MLC's engine could not run it: {wrong[0].name}: {wrong[0].detail}")
    note(f"{len(steps)} steps as MLC's engine takes them on {engine.device.name}")
