#!/usr/bin/env python3
"""Everything that a report about a graphics card needs, in one file: builds the demo for the device, holds every kernel
against numpy, generates with and without drafts and compares the tokens with the processor's, times passes.

Each step is a command of this project, run in a process of its own; one that fails is noted with what it said, and
those that do not need it go on. Exit code 1 when any failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from blockffn_mlc.errors import UserError  # noqa: E402
from runtime_py.bench.machine import processor  # noqa: E402
from runtime_py.devices import device_facts, find_device  # noqa: E402
from runtime_py.tvm_runtime import installed_version  # noqa: E402

FORMATS = ("q0f32", "q0f16", "q4f16_1")
DRAFTS = ("none", "ngram", "eagle")
_PROMPT = "In the beginning"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="metal" if sys.platform == "darwin" else "cuda", metavar="NAME",
                        help="cuda, metal, or any that 'python -m runtime_py devices' lists (here: %(default)s)")
    parser.add_argument("--target", metavar="NAME", help="to build for; default: the device's kind")
    parser.add_argument("--formats", default=",".join(FORMATS), metavar="Q,Q", help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="to generate (default: 64)")
    parser.add_argument("--skip-bench", action="store_true", help="time nothing")
    parser.add_argument("-o", "--output", type=Path, default=Path("check_gpu.json"), metavar="FILE",
                        help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        device = find_device(arguments.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    facts = {"name": device.product} if device.kind == "cpu" else device_facts(device.name)
    with tempfile.TemporaryDirectory(prefix="blockffn-check-") as folder:
        formats = {name: check(name, arguments.target or device.kind, device.name, facts, Path(folder), arguments)
                   for name in arguments.formats.split(",")}
    ok = all(step["ok"] for steps in formats.values() for step in steps.values())
    report = {"device": device.name, "facts": facts, "processor": processor(), "system": platform.platform(),
              "python": platform.python_version(), "tvm": installed_version(), "commit": _commit(), "ok": ok,
              "formats": formats}
    arguments.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(arguments.output)
    return 0 if ok else 1


def check(weight_format: str, target: str, device: str, facts: dict[str, Any], folder: Path,
          arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All steps of one weight format, by name."""
    steps: dict[str, dict[str, Any]] = {}
    artifacts = {name: folder / f"{weight_format}-{name.replace(':', '-')}" for name in (target, "cpu")}

    def step(name: str, command: Sequence[str], needs: Sequence[str] = ()) -> None:
        failed = [needed for needed in needs if not steps[needed]["ok"]]
        steps[name] = {"ok": False, "error": f"needs {failed[0]}, which failed"} if failed else run(command)
        print(f"{weight_format:8} {name:16} {'ok' if steps[name]['ok'] else steps[name]['error']}", file=sys.stderr)

    for name, artifact in artifacts.items():
        coded = ["--activations", "f32"] if name == "cpu" and weight_format.startswith("q4") else []
        step(f"build {name}", ["build.py", "--target", name, "--quantization", weight_format, "-o", str(artifact),
                               "-q", "--json", *coded, *architecture(name, facts)])
    for path in artifacts[target].glob("lib/*.json"):  # what kernels take of the device
        steps[f"build {target}"]["kernels"] = json.loads(path.read_text(encoding="utf-8"))
    runtime = ["-m", "runtime_py"]
    on_device = [str(artifacts[target]), "--device", device, "--json"]
    step("verify", [*runtime, "verify", *on_device], [f"build {target}"])
    greedy = ["--prompt", _PROMPT, "--max-tokens", str(arguments.tokens), "--temperature", "0"]
    step("processor", [*runtime, "generate", str(artifacts["cpu"]), "--json", *greedy, "--draft", "none"],
         ["build cpu"])
    for draft in DRAFTS:
        step(f"draft {draft}", [*runtime, "generate", *on_device, *greedy, "--draft", draft], [f"build {target}"])
    expected = steps["processor"].get("result", {}).get("ids")
    for draft in DRAFTS:
        found = steps[f"draft {draft}"].get("result", {}).get("ids")
        if expected and found:
            steps[f"draft {draft}"]["tokens_as_processor"] = _same(expected, found)
    if not arguments.skip_bench:
        step("bench", [*runtime, "bench", str(artifacts[target]), "--device", device, "-n", "32", "-o", "json"],
             [f"build {target}"])
    return steps


def run(command: Sequence[str]) -> dict[str, Any]:
    """One command's result: ``ok``, ``seconds``, and ``result``, what it printed as JSON, or ``error``."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    seconds = round(time.perf_counter() - start, 3)
    said = done.stderr.strip().splitlines()
    try:
        result = json.loads(done.stdout)
    except ValueError:
        result = None
    step = {"ok": done.returncode == 0 and result is not None, "seconds": seconds, "command": list(command)}
    if result is not None:
        step["result"] = result
    if not step["ok"]:
        step["error"] = said[-1] if said else f"exit code {done.returncode}"
    return step


def architecture(target: str, facts: dict[str, Any]) -> list[str]:
    """``--arch`` for the device that is here."""
    known = target.partition(":")[0] == "cuda" and "version" in facts
    return ["--arch", "sm_" + str(facts["version"]).replace(".", "")] if known else []


def _same(expected: list[int], found: list[int]) -> int:
    """How many tokens there are before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))


def _commit() -> str | None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
