"""The model library in each of a target's forms: compiled, held against the device's limits, linked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from .compile import Graph, compile_graph
from .errors import UserError
from .target import Form, Target

STAGES = ("lower", "generate code", "link")
_MAX_PREFIX = 128


def write_libraries(graph: Graph, target: Target, stem: Path, prefix: str, stage: Callable[[str], None]
                    ) -> dict[str, int]:
    """Write ``stem`` with the suffix of each form; returns what kernels take of the device where they may not take
    anything, as ``Limits.check_functions``. ``prefix``: of the system library's symbols. ``stage(name)`` is told when
    one of STAGES begins. Raises UserError when a kernel exceeds the device's limits or linking fails."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    taken: dict[str, int] = {}
    for form in target.forms:
        executable, taken = _compile(graph, target, prefix if form.system_lib else None, stage)
        stage("link")
        _link(executable, target, form, stem.with_name(stem.name + form.suffix))
    return taken


def system_lib_prefix(given: str | None, model: str, quantization: str) -> str:
    """What the symbols of a system library begin with: ``given``, or a name from the model's and the format's that
    tells libraries in one app apart. It ends in "_"; without that it is MLC's name of the library. Raises UserError."""
    if given is None:
        return "_".join(["blockffn", *re.findall("[A-Za-z0-9]+", f"{model} {quantization}"), ""]).lower()
    # TVM 0.27 cannot read an attribute of fewer than 8 bytes back.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*_", given) or not 8 <= len(given) <= _MAX_PREFIX:
        raise UserError(f"--system-lib-prefix {given}: expected 8 to {_MAX_PREFIX} letters, digits and underscores "
                        "that end in an underscore, for example my_model_")
    return given


def _compile(graph: Graph, target: Target, prefix: str | None, stage: Callable[[str], None]
             ) -> tuple[relax.VMExecutable, dict[str, int]]:
    if target.limits is None:
        try:
            return compile_graph(graph, target.tvm_target, stage, prefix=prefix), {}
        except TypeError as error:  # renaming functions, TVM 0.27's AttachGlobalSymbol fails on their prefetches
            if prefix is None or "Cannot treat type" not in str(error):
                raise
            raise UserError(f"target {target.name}: TVM 0.27 makes no library for apps of kernels that prefetch, as "
                            "those for processors do; choose a target for devices") from None
    split = _DeviceFunctions()
    executable = compile_graph(graph, target.tvm_target, stage, prefix=prefix, instruments=[split])
    taken = target.limits.check_functions(target.name, split.module)
    modules = executable.mod.imports[0].imports
    target.limits.check_source(target.name, "\n".join(module.inspect_source() for module in modules))
    return executable, taken


@tvm.ir.instrument.pass_instrument
class _DeviceFunctions:
    """Keeps the module in which device functions have just become functions of their own."""

    def __init__(self) -> None:
        self.module = tvm.IRModule()

    def run_after_pass(self, module: tvm.IRModule, info: Any) -> None:
        if info.name == "tirx.SplitHostDevice":
            self.module = module


def _link(executable: relax.VMExecutable, target: Target, form: Form, library: Path) -> None:
    try:
        target.export(executable, str(library), form.link)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{library.name}: linking failed ({lines[-1] if lines else error}); check the linker and the "
                        "free space") from None
