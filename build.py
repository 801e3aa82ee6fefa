#!/usr/bin/env python3
"""Compile a BlockFFN checkpoint into an artifact folder: ``python build.py`` alone builds the demo model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from blockffn_mlc.builder import Plan, build_artifact, make_plan, weights_identity
from blockffn_mlc.chat_config import tokenizer_files
from blockffn_mlc.errors import UserError
from blockffn_mlc.layers import MLC_CACHES
from blockffn_mlc.mlc.package import check_package, write_package
from blockffn_mlc.progress import Progress
from blockffn_mlc.sources import DEMO, DEMO_DRAFT, ModelSource, open_model, with_draft
from blockffn_mlc.staging import check_destination
from schedules.activations import ACTIVATIONS
from targets import find_targets, list_targets

# Options that only a compiled artifact has.
_ARTIFACT_OPTIONS = ("target", "draft", "draft_vocab", "activations", "context_window", "prefill_chunk", "cpu", "arch",
                     "mlc", "mlc_cache", "device_limits", "package", "system_lib_prefix")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked for form only."""
    parser = argparse.ArgumentParser(prog="build.py", description=__doc__)
    parser.add_argument("--target", default="cpu", metavar="T",
                        help="one or more, separated by commas, an artifact each (default: cpu); see --list-targets")
    parser.add_argument("--model", default=DEMO, metavar="M",
                        help="checkpoint folder, 'demo' (default), HF://org/repo[@revision], or NAME@random with "
                             "NAME one of small, medium, large, xlarge, 3b")
    parser.add_argument("--emit", choices=("artifact", "onnx"), default="artifact",
                        help="what to write: a compiled artifact, or the model as ONNX, dense, for other runtimes "
                             "(default: artifact)")
    parser.add_argument("--draft", metavar="DIR",
                        help="folder of an EAGLE draft of the model, compiled into the same artifact, or 'none' "
                             "(default: the demo's own for the demo, none otherwise)")
    parser.add_argument("--draft-vocab", type=int, metavar="N",
                        help="let the draft name the first N tokens of its frequency list (default: all)")
    parser.add_argument("--quantization", metavar="Q", help="weight format, in MLC's names "
                        "(default: q0f32 for the demo, q0f16 otherwise)")
    parser.add_argument("--activations", choices=ACTIVATIONS, metavar="A",
                        help="what 4-bit weights are multiplied by: f32, int8x2 (two planes of 8-bit codes, about 15 "
                             "bits) or int8 (default: int8 where the processor multiplies bytes, else f32)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR",
                        help="artifact folder (default: dist/MODEL-Q-T; dist/MODEL-Q-A-T with --activations; "
                             "dist/MODEL-Q-onnx); with several targets DIR/T each")
    parser.add_argument("--context-window", type=int, metavar="N", help="tokens (default: the model's limit)")
    parser.add_argument("--prefill-chunk", type=int, metavar="N",
                        help="tokens per prefill pass (default: 512, on phones 128, vulkan 256)")
    parser.add_argument("--cpu", default="native", metavar="NAME",
                        help="processor for targets cpu and cpu:aarch64 (default: this one; every 64-bit ARM)")
    parser.add_argument("--arch", metavar="A[,A...]",
                        help="GPUs that a library for CUDA holds machine code for (default: sm_80,sm_87,sm_90)")
    parser.add_argument("--mlc", action=argparse.BooleanOptionalAction,
                        help="also export the functions of MLC's engine, which then runs the artifact too (default: "
                             "for phones, vulkan, cuda and metal)")
    parser.add_argument("--mlc-cache", choices=MLC_CACHES,
                        help="how latent attention uses that engine's cache: mla (GPUs; least memory, no speculation), "
                             "mqa (twice that) or mha (keys and values of every head, 7 to 17 times that) (default: "
                             "mla on GPUs without --draft, else mqa)")
    parser.add_argument("--device-limits", choices=("target", "probe"), default="target",
                        help="how large buffers for Vulkan may be: as on every device, or as on this machine's first "
                             "device (default: target)")
    parser.add_argument("--package", action="store_true",
                        help="for phones: also write the folder DIR-package that mlc_llm package makes an app of")
    parser.add_argument("--system-lib-prefix", metavar="P",
                        help="what the symbols of a library for apps begin with (default: blockffn_MODEL_Q_)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), metavar="N",
                        help="shards of weights converted at a time (default: one per core, at most 4; each takes "
                             "memory for its largest tensor)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--list-targets", action="store_true",
                        help="print the targets, what each needs and what of it is here, and stop")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="list the kernels of the plan")
    volume.add_argument("-q", "--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: expected at least 1")
    if arguments.emit == "onnx":
        for name in _ARTIFACT_OPTIONS:
            if getattr(arguments, name) not in (parser.get_default(name), "none"):
                parser.error(f"--emit onnx: is not compiled for a target; leave --{name.replace('_', '-')} out")
    elif arguments.draft is None and arguments.model == DEMO:
        arguments.draft = str(DEMO_DRAFT)
    arguments.draft = None if arguments.draft in (None, "none") else Path(arguments.draft)
    if arguments.draft_vocab is not None and arguments.draft is None:
        parser.error(f"--draft-vocab {arguments.draft_vocab}: expected --draft DIR beside it")
    if arguments.package and arguments.mlc is False:
        parser.error("--package: apps of MLC's need its functions; leave --no-mlc out")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says. Raises UserError."""
    if arguments.list_targets:
        report_targets(arguments)
        return
    progress = Progress(arguments.quiet)
    if arguments.emit == "onnx":
        emit_onnx(arguments, progress)
        return
    targets = find_targets(arguments.target, arguments.cpu, arguments.device_limits == "probe",
                           arguments.arch)
    for note in filter(None, (target.note for target in targets)):
        progress.note(note)
    model = open_model(arguments.model)
    if arguments.draft is not None:
        model = with_draft(model, arguments.draft, arguments.draft_vocab)
    quantization = default_quantization(arguments)
    plans: dict[Path, Plan] = {}
    for target in targets:
        parts = [model.name, quantization, arguments.activations, target.file_name]
        out = arguments.output or Path("dist") / "-".join(part for part in parts if part)
        out = out / target.file_name if arguments.output and len(targets) > 1 else out
        check_destination(out)
        if arguments.package:
            check_package(target, out)
        with progress.step("plan" if len(targets) == 1 else f"plan {target.name}"):
            plans[out] = make_plan(model.config, target, quantization, arguments.context_window,
                                   arguments.prefill_chunk, model.folder, arguments.activations, model.draft,
                                   model.name, arguments.system_lib_prefix,
                                   target.serves_mlc if arguments.mlc is None else arguments.mlc, arguments.mlc_cache)
    if not tokenizer_files(model.folder):
        progress.note(f"{model.name} has no tokenizer.json: the artifact will take token ids only (--ids)")
    if arguments.dry_run:
        report([plan.summary() for plan in plans.values()], arguments)
    else:
        results = build(plans, model, arguments.jobs, progress)
        if arguments.package:
            for (out, plan), result in zip(plans.items(), results):
                result["package"] = str(write_package(plan, out))
        report(results, arguments)


def default_quantization(arguments: argparse.Namespace) -> str:
    """The format asked for, or the model's default."""
    return arguments.quantization or ("q0f32" if arguments.model == DEMO else "q0f16")


def emit_onnx(arguments: argparse.Namespace, progress: Progress) -> None:
    """Write the model as ONNX, or say what would be written. Raises UserError, OSError."""
    try:
        from blockffn_mlc.onnx.export import plan_onnx, summary, write_onnx
    except ImportError as error:
        raise UserError(f"--emit onnx: needs the Python package {error.name}, which is not installed; "
                        "run: pip install 'blockffn-mlc[onnx]'") from None
    model, quantization = open_model(arguments.model), default_quantization(arguments)
    out = arguments.output or Path("dist") / f"{model.name}-{quantization}-onnx"
    check_destination(out)
    graph = plan_onnx(model.config, quantization)
    if not arguments.dry_run:
        write_onnx(graph, model.config, model.weights, model.folder, out, progress)
    report([{"folder": str(out), **summary(graph, model.config, quantization)}], arguments)


def build(plans: dict[Path, Plan], model: ModelSource, jobs: int, progress: Progress) -> list[dict[str, Any]]:
    """Build every artifact; those whose weights are the same bytes share them. Raises UserError, OSError."""
    for plan in plans.values():
        plan.target.check_tools()
    results, built = [], {}
    for out, plan in plans.items():
        weights = weights_identity(plan, model.identity)
        if weights in built:
            progress.note(f"{plan.target.name}: weights as for {plans[built[weights]].target.name}")
        elif built:
            progress.note(f"{plan.target.name}: weights are converted again, their order in memory is another")
        result = build_artifact(plan, model.weights, model.folder, model.identity, out, jobs, progress,
                                model.token_stream, twin=built.get(weights))
        if result["kept_shards"]:
            progress.note(f"kept {result['kept_shards']} finished shard(s) of an interrupted build")
        built.setdefault(weights, out)
        results.append(result)
    return results


def report_targets(arguments: argparse.Namespace) -> None:
    """Print the targets on stdout."""
    targets = list_targets()
    if arguments.json:
        print(json.dumps(targets, indent=1))
        return
    for name, target in targets.items():
        alias = f" (also called {', '.join(target['aliases'])})" if target["aliases"] else ""
        print(f"{name:17}{target['about']}{alias}")
        for tool in target["tools"]:
            found = f"found {tool['found']}" if tool["found"] else f"not found: {tool['install']}"
            print(f"{'':17}  {tool['name']} {tool['purpose']}: {found}")


def report(summaries: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print plans or results on stdout; as JSON one is an object, several are a list."""
    if arguments.json:
        print(json.dumps(summaries[0] if len(summaries) == 1 else summaries, indent=1))
        return
    for summary in summaries:
        report_one(summary, arguments)


def report_one(summary: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print a plan or a result as text."""
    for name, value in summary.items():
        if name == "kernels":
            print(f"{'kernels':16}{len(value)}")
            for kernel, origin in value.items() if arguments.verbose or arguments.dry_run else ():
                print(f"  {kernel:24}{origin}")
        elif name.endswith("_bytes"):
            print(f"{name.removesuffix('_bytes'):16}{value / 1e6:.1f} MB")
        else:
            print(f"{name.replace('_', ' '):16}{', '.join(value) if isinstance(value, list) else value}")


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 for bad input, 2 for a wrong command line, 130 when interrupted."""
    arguments = parse_arguments(argv)
    try:
        run(arguments)
        print(end="", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # a reader that left (head, less) is no error to report
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit does not complain
        return 1
    except OSError as error:
        kept = ": finished weights are kept" if arguments.emit == "artifact" else ""
        print(f"error: {error.filename or 'writing the artifact'}: {error.strerror or error}; free space or choose "
              f"another -o, then run the same command again{kept}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "finished weights are kept for the next build of the same artifact"
        print(f"interrupted; {kept if arguments.emit == 'artifact' else 'nothing was written'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
