"""The folder that ``mlc_llm package`` takes, beside an artifact: mlc-package-config.json, the library's objects, the
weights and a README (MLC contract, section 2.4)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ..chat_config import DRAFT
from ..chat_config import FILE as CHAT_CONFIG
from ..errors import UserError
from ..shards import INDEX, link_or_copy
from ..target import Target
from .kv_cache import cache_bytes

if TYPE_CHECKING:
    from ..builder import Plan

FILE = "mlc-package-config.json"
README = "README.md"
_TEXTS = Path(__file__).parent


def package_folder(artifact: Path) -> Path:
    """Where the package of ``artifact`` goes. Beside it: MLC copies the folder of the weights, its own output must not
    lie in there."""
    artifact = Path(os.path.abspath(artifact))
    return artifact.with_name(f"{artifact.name}-package")


def check_package(target: Target, artifact: Path) -> None:
    """Refuse, before any work, a target whose libraries no app of MLC's can be linked with, and to replace a folder
    that is no package. Raises UserError."""
    if target.mlc_device is None or not any(form.system_lib for form in target.forms):
        raise UserError(f"--package: target {target.name} makes no library that apps are linked with; choose one for "
                        "phones, such as android, or leave --package out")
    folder = package_folder(artifact)
    if folder.exists() and not (folder / FILE).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: needed for the package, but holds something else; move it away or choose another "
                        "-o")


def estimated_bytes(plan: Plan) -> int:
    """Memory that a chat takes at most: weights, MLC's cache over the whole context window, and twice what a function
    allocates for intermediate results, as MLC's engine counts them."""
    return plan.weight_bytes + cache_bytes(plan.build) + 2 * max(plan.graph.memory_usage.values())


def package_config(plan: Plan, model_id: str) -> dict[str, Any]:
    """The contents of mlc-package-config.json; paths are relative to the folder it is in. All libraries named are
    linked, the draft's too; stock apps offer what ``model_list`` holds, which a draft is not for."""
    model_lib = plan.prefix.removesuffix("_")
    return {
        "device": plan.target.mlc_device,
        "model_list": [{"model": model_id, "model_id": model_id, "model_lib": model_lib, "bundle_weight": True,
                        "estimated_vram_bytes": estimated_bytes(plan)}],
        "model_lib_path_for_prepare_libs": {part.prefix.removesuffix("_"): _objects(part)
                                            for part in (plan, plan.draft) if part}}


def write_package(plan: Plan, artifact: Path) -> Path:
    """Package a finished ``artifact`` of ``plan``; files are linked where the file system can, else copied. An earlier
    package is replaced. Returns the folder. Raises UserError, OSError."""
    check_package(plan.target, artifact)
    artifact, folder = Path(os.path.abspath(artifact)), package_folder(artifact)
    config = package_config(plan, artifact.name)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _copy(plan, artifact, partial, artifact.name)
    if plan.draft:
        _copy(plan.draft, artifact / DRAFT, partial, f"{artifact.name}-{DRAFT}")
    (partial / FILE).write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    (partial / README).write_text(_readme(plan, folder, config), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def _objects(plan: Plan) -> str:
    """The library to link with, in the model's folder and in the package."""
    return plan.library + next(form.suffix for form in plan.target.forms if form.system_lib)


def _copy(plan: Plan, source: Path, package: Path, model_id: str) -> None:
    weights = [CHAT_CONFIG, INDEX, *plan.chat["tokenizer_files"], *(shard.file for shard in plan.shards)]
    for name, copy in ((_objects(plan), _objects(plan)), *((name, f"{model_id}/{name}") for name in weights)):
        (package / copy).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source / name, package / copy)


def _readme(plan: Plan, folder: Path, config: dict[str, Any]) -> str:
    (model,) = config["model_list"]
    device, driver = config["device"], str(plan.target.tvm_target.kind)
    values = {"package": folder.name, "model_id": model["model_id"], "model_lib": model["model_lib"],
              "draft": _NO_DRAFT if plan.draft is None else _DRAFT.format(
                  id=f"{model['model_id']}-{DRAFT}", lib=plan.draft.prefix.removesuffix("_")),
              "library": config["model_lib_path_for_prepare_libs"][model["model_lib"]],
              "target": plan.target.name, "quantization": plan.build.quantization.name,
              "megabytes": round(model["estimated_vram_bytes"] / 1e6),
              "context_window": plan.build.context_window, "driver": _DRIVERS.get((device, driver), "")}
    steps = Template((_TEXTS / f"package_{device}.md").read_text(encoding="utf-8")).substitute(values)
    return Template((_TEXTS / "package.md").read_text(encoding="utf-8")).substitute(values, steps=steps.strip())


_DRAFT = """
The model's draft, for that, is `{id}/`; its library, `{lib}`, is linked into the app too. Its weights must be brought
to the phone beside the model's: MODEL is where they are there, MODEL_LIB `system://{lib}`.
"""
_NO_DRAFT = """
This package has no draft model for that; `build.py --draft` makes one, with a cache of MLC's MHA kind: one of its MLA
kind cannot verify drafts.
"""
_DRIVERS = {("android", "vulkan"): """
**This library needs Vulkan, which stock MLC Chat for Android does not have**: `android/mlc4j` is built with OpenCL
alone (`prepare_libs.py`, `src/cpp/tvm_runtime.h`) and `JSONFFIEngine.java` asks for `Device.opencl()`. All three must
be changed to Vulkan; nobody has tried. `--target android` needs no change.
"""}
