#!/usr/bin/env python3
"""Run artifacts for 64-bit ARM on this machine, under qemu-user, and compare them with this machine's own.

    python tools/emulate_aarch64.py                      # every variant
    python tools/emulate_aarch64.py --list
    python tools/emulate_aarch64.py --only q0f32 int8
    python tools/emulate_aarch64.py --python -m pytest tests/schedules/test_encode.py

The demo model is built for each variant and, in the same format, for this machine's processor. Under emulation our
runtime generates greedily, with and without drafts, scores text in one chunk and in small ones, and verifies every
kernel against numpy. The first run fetches about 250 MB and unpacks 900 MB into --cache. Emulation shows that code is
right, never how fast it is. Exit codes: 0 all agree, 1 a difference or something missing, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from aarch64_sysroot import Sysroot, prepare  # noqa: E402

from blockffn_mlc.errors import UserError  # noqa: E402
from runtime_py.artifact import Artifact  # noqa: E402
from runtime_py.files import cache_folder, replacing  # noqa: E402
from runtime_py.tokenizer import Tokenizer  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PROMPT = ("In the beginning God created the heaven and the earth. And the earth was without form, and void; and "
          "darkness was upon the face of the deep. And the Spirit of God moved upon the face of the waters.")
TOKENS, SMALL_CHUNK, TREE = 48, 5, 8
# Logits of two machines differ by the order of sums; where values are rounded in between (a float16 cache, codes), a
# difference may turn a value into its neighbour, which the layers behind make about as large as the rounding itself.
NMSE = {"q0f32": 1e-10, "f32": 1e-8, "int8x2": 1e-8, "int8": 2e-4}
_GAP = 6  # two logits that differ by less than so many times the errors' root mean square may change places


@dataclass(frozen=True)
class Variant:
    """What is built and run: ``cpu`` is LLVM's name for --cpu, ``processor`` qemu's for what emulates it."""

    name: str
    target: str
    quantization: str
    activations: str
    processor: str
    cpu: str = "native"

    @property
    def bound(self) -> float:
        """NMSE of logits that passes."""
        return NMSE[self.quantization if self.quantization == "q0f32" else self.activations]

    @property
    def on_cpu(self) -> bool:
        return self.target.startswith("cpu")


# A Cortex-A53 has NEON alone, so code that needs more stops there; a Neoverse-N1 multiplies bytes.
VARIANTS = (
    Variant("q0f32", "cpu:aarch64", "q0f32", "f32", "cortex-a53"),
    Variant("q4f16_1", "cpu:aarch64", "q4f16_1", "f32", "cortex-a53"),
    Variant("q0f32-dotprod", "cpu:aarch64", "q0f32", "f32", "neoverse-n1", "neoverse-n1"),
    Variant("q4f16_1-dotprod", "cpu:aarch64", "q4f16_1", "f32", "neoverse-n1", "neoverse-n1"),
    Variant("int8x2", "cpu:aarch64", "q4f16_1", "int8x2", "neoverse-n1", "neoverse-n1"),
    Variant("int8", "cpu:aarch64", "q4f16_1", "int8", "neoverse-n1", "neoverse-n1"),
    Variant("android", "android", "q0f32", "f32", "cortex-a53"),
)


def main(argv: list[str] | None = None) -> int:
    names = [variant.name for variant in VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names, help="variants to run")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "aarch64", metavar="DIR",
                        help="where the ARM system, artifacts and downloads are (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the variants and stop")
    parser.add_argument("--prepare", action="store_true", help="make the ARM system and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results there, too")
    parser.add_argument("--processor", default="max", help="qemu's processor for --python (default: %(default)s)")
    parser.add_argument("--python", nargs=argparse.REMAINDER, metavar="ARG",
                        help="run the emulated Python with all that follows, and stop")
    arguments = parser.parse_args(argv)
    chosen = [variant for variant in VARIANTS if variant.name in arguments.only]
    if arguments.list:
        for variant in VARIANTS:
            print(describe(variant))
        return 0
    try:
        emulates = not (arguments.prepare or arguments.python)
        sysroot = prepare(arguments.cache, note, opencl=emulates and not all(variant.on_cpu for variant in chosen))
        if arguments.python:
            return sysroot.python(arguments.python, arguments.processor, capture=False).returncode
        if arguments.prepare:
            return 0
        results = [run_variant(sysroot, variant) for variant in chosen]
        if arguments.json:
            with replacing(arguments.json) as path:
                path.write_text(json.dumps({"emulator": emulator(), "bounds": NMSE, "results": results}, indent=2))
    except UserError as error:
        note(f"error: {error}")
        return 1
    return 0 if all(result["problem"] is None for result in results) else 1


def run_variant(sysroot: Sysroot, variant: Variant) -> dict[str, Any]:
    """Build, run and compare one variant, print a line, and return what ``--json`` holds of it: the variant's fields,
    the figures of ``compare``, ``kernels`` (verified), ``seconds``, and ``problem``, null when all is well."""
    begin = time.monotonic()
    result: dict[str, Any] = {**asdict(variant), "bound": variant.bound, "problem": None}
    work = sysroot.folder / "artifacts"
    work.mkdir(parents=True, exist_ok=True)

    def emulated(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return sysroot.python(arguments, variant.processor)

    try:
        artifact = build(work / variant.name, variant.target, variant.cpu, variant.quantization, variant.activations)
        reference = build(work / f"host-{variant.quantization}-{variant.activations}", "cpu", "native",
                          variant.quantization, variant.activations)
        result["host"] = Artifact.open(artifact).host
        note(f"running {variant.name}")
        prompt = [Artifact.open(reference).config.bos_token_id,
                  *Tokenizer.load(reference / "tokenizer.json").encode(PROMPT)]
        result |= compare(variant, prompt, Runs(here, reference), Runs(emulated, artifact))
        report = json.loads(checked(emulated(["-m", "runtime_py", "verify", str(artifact), "--json"]), "verify"))
        result["kernels"] = len(report["kernels"])
    except UserError as error:
        result["problem"] = str(error)
    result["seconds"] = round(time.monotonic() - begin, 1)
    print(summary(variant, result), flush=True)
    return result


@cache
def build(folder: Path, target: str, cpu: str, quantization: str, activations: str) -> Path:
    """Build the demo in ``folder``, once per process. Raises UserError."""
    note(f"building {folder.name}")
    command = [str(ROOT / "build.py"), "-q", "--target", target, "--quantization", quantization, "-o", str(folder)]
    if target.startswith("cpu"):
        command += ["--cpu", cpu, "--activations", activations]
    checked(here(command), f"building {folder.name}")
    return folder


@dataclass(frozen=True)
class Runs:
    """An artifact and the Python that runs it."""

    python: Callable[[Sequence[str]], subprocess.CompletedProcess[str]]
    artifact: Path

    def generate(self, prompt: Sequence[int], *options: str) -> list[int]:
        """Greedy tokens. Raises UserError, as the following does."""
        ids = self._write("prompt.json", prompt)
        return json.loads(self._command("generate", "--ids", ids, "--max-tokens", str(TOKENS), "--json",
                                        *options))["ids"]

    def logits(self, ids: Sequence[int], *options: str) -> np.ndarray:
        """Float32 [T, V]: row t predicts token t + 1."""
        out = self.artifact.with_suffix(".npy")
        self._command("score", "--ids", self._write("ids.json", ids), "--logits", str(out), "--json", *options)
        return np.load(out)

    def _command(self, name: str, *arguments: str) -> str:
        return checked(self.python(["-m", "runtime_py", name, str(self.artifact), *arguments]), name)

    def _write(self, name: str, ids: Sequence[int]) -> str:
        path = self.artifact.with_suffix(f".{name}")
        path.write_text(json.dumps(list(ids)))
        return str(path)


def compare(variant: Variant, prompt: Sequence[int], host: Runs, emulated: Runs) -> dict[str, Any]:
    """Figures: ``nmse`` of the logits, ``agreed`` greedy tokens before the first difference, of ``tokens``. Raises
    UserError when they differ by more than the variant's bound, or when chunks or drafts change anything on the CPU."""
    expected, found = host.generate(prompt, "--draft", "none"), emulated.generate(prompt, "--draft", "none")
    ids = [*prompt, *expected]
    logits, other = host.logits(ids), emulated.logits(ids)
    figures = {"nmse": nmse(other, logits), "tokens": len(expected), "agreed": agreed(expected, found)}
    if not figures["nmse"] <= variant.bound:
        raise UserError(f"NMSE of the logits is {figures['nmse']:.1e}, expected at most {variant.bound:.1e}")
    drafted = emulated.generate(prompt, "--draft", "eagle", "--tree-size", str(TREE))
    chunked = emulated.logits(ids, "--chunk", str(SMALL_CHUNK))
    if variant.on_cpu:
        if found != drafted:
            raise UserError(f"with drafts token {agreed(found, drafted)} is another")
        if other.tobytes() != chunked.tobytes():
            raise UserError(f"logits in chunks of {SMALL_CHUNK} have other bits (NMSE {nmse(chunked, other):.1e})")
    for tokens in (found, drafted):
        at = agreed(expected, tokens)
        row = logits[len(prompt) - 1 + at] if at < len(expected) else None
        if row is not None and top_gap(row) > allowed_gap(row, variant.bound):
            raise UserError(f"greedy token {at} is {tokens[at:at + 1]}, here {expected[at]}; the gap to the second is "
                            f"{top_gap(row):.2g}, more than {allowed_gap(row, variant.bound):.2g}")
    return figures


def nmse(found: np.ndarray, expected: np.ndarray) -> float:
    """Sum of squared errors over sum of squares; NaN where there is one."""
    error = found.astype(np.float64) - expected
    return float((error**2).sum() / (expected.astype(np.float64)**2).sum())


def agreed(expected: Sequence[int], found: Sequence[int]) -> int:
    """Tokens before the first difference."""
    differ = (i for i, pair in enumerate(zip(expected, found)) if pair[0] != pair[1])
    return next(differ, min(len(expected), len(found)))


def top_gap(row: np.ndarray) -> float:
    """The largest logit less the second."""
    second, first = np.partition(row, -2)[-2:]
    return float(first - second)


def allowed_gap(row: np.ndarray, bound: float) -> float:
    """Below this gap between two logits of ``row`` errors within ``bound`` (NMSE) may let them change places."""
    return _GAP * float(np.sqrt(bound * np.mean(row.astype(np.float64)**2)))


def describe(variant: Variant) -> str:
    """One line."""
    cpu = "" if variant.cpu == "native" else f" --cpu {variant.cpu}"
    return (f"{variant.name:<16} --target {variant.target}{cpu} --quantization {variant.quantization} --activations "
            f"{variant.activations}, on qemu's {variant.processor}")


def summary(variant: Variant, result: dict[str, Any]) -> str:
    """One line."""
    if result["problem"]:
        return f"{variant.name:<16} FAILED: {result['problem']}"
    return (f"{variant.name:<16} {result['agreed']} of {result['tokens']} greedy tokens agree, NMSE "
            f"{result['nmse']:.1e} (bound {variant.bound:.0e}), {result['kernels']} kernels verified")


def emulator() -> str:
    """qemu's version."""
    return subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True).stdout.splitlines()[0]


def here(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run this machine's Python."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def checked(done: subprocess.CompletedProcess[str], what: str) -> str:
    """Its output. Raises UserError with its last words when it failed."""
    if done.returncode:
        raise UserError(f"{what}: exit code {done.returncode}: {' '.join(done.stderr.splitlines()[-1:])}")
    return done.stdout


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
