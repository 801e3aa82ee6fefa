"""The OpenCL text of kernels for phones: of those that read weights at a model's sizes, of all in whole libraries."""

import json
import re
from collections import defaultdict
from dataclasses import replace
from itertools import product

import pytest
import tvm
from checkpoints import GQA, MLA
from gpu_harness import TARGETS
from harness import module_of

from blockffn_mlc.builder import make_plan
from blockffn_mlc.checkpoint.draft import Draft
from blockffn_mlc.compile import compile_graph
from blockffn_mlc.draft_config import DraftConfig
from schedules import gpu
from schedules.builder import FACTORY
from schedules.gpu import grid
from schedules.layout import FLOAT_FORMATS
from schedules.tiles import GPU_TILES
from targets import find_target
from targets.limits import kernel_sources

TILES = GPU_TILES["adreno"]
KERNELS = {
    "linear": lambda: gpu.linear(TILES, 1792, 1792, "q4f16_1", residual_scale=0.3),
    "router": lambda: gpu.router(TILES, 40, 1792, "rms", 1e-5, 1.0, "float16"),
    "union": lambda: gpu.union(40),
    "sparse_up": lambda: gpu.sparse_up(TILES, 40, 1792, 128, "q4f16_1"),
    "sparse_down": lambda: gpu.sparse_down(TILES, 40, 1792, 128, "q4f16_1", 0.3),
}
OTHERS = {  # not in the libraries below: with MLC's cache expanded; where its engine chooses tokens, never on OpenCL
    "expanded_heads": lambda: gpu.expanded_heads(TILES, 14, 128, 64, 128, 4096, x_width=1088, offset=1024,
                                                 dtype="float16"),
    "linear_heads": lambda: gpu.linear_heads(TILES, 14, 256, 128, "float16"),
    "multinomial": lambda: gpu.multinomial(TILES, 73448),
    "renormalize_top_p": lambda: gpu.renormalize_top_p(TILES, 73448),
    "sample_top_p": lambda: gpu.sample_top_p(TILES, 73448),
    "sort_pass": lambda: gpu.sort_pass(TILES, 73448),
    "take_probs": lambda: gpu.take_probs(73448),
    "verify_drafts": lambda: gpu.verify_drafts(TILES, 73448),
}
DRAFT = Draft(DraftConfig(64, 2, 96, 4, 2, 16), True, tuple(range(9, 40)))
FACTORIES = {name for name in gpu.__all__ if callable(getattr(gpu, name))}


def texts_of(func):
    """By device kernel its OpenCL text."""
    texts = kernel_sources(tvm.compile(module_of(func), TARGETS["opencl"]).mod.imports[0].inspect_source(""))
    assert texts
    return texts


@pytest.mark.parametrize("name", OTHERS)
def test_text_of_others(name):
    for kernel, text in texts_of(OTHERS[name]()).items():
        check(kernel, text)
        assert len(text) < 1 << 15 and bool(barriers(text)) == (name not in ("expanded_heads", "take_probs")), kernel


# A load of 16 bytes of a matrix, and of 8: the half-precision scales of four outputs. In Vulkan's GLSL a buffer has a
# name for each type of vector.
LOADS = {
    "opencl": {16: r"vload(4\(0, |8\(0, )weights_ptr", 8: r"vload2\(0, weights_ptr"},
    "cuda": {16: r"\*\((uint|float)4\*\)\(+(uint\*\))?weights_ptr", 8: r"\*\(uint2\*\)\(weights_ptr"},
    "metal": {16: r"\*\(device (uint|float|half)4\*\)\(weights_ptr",
              8: r"\*\(device uint2\*\)\(weights_ptr"},
    "vulkan": {16: r"uvec4 \w+ = weights_ptr\w*_x4\[", 8: r"uvec2 \w+ = weights_ptr\w*_x2\["},
}
DEFINITION = re.compile(r"^(__kernel|extern|kernel|layout|  device).*weights_ptr.*$", re.MULTILINE)


def matrix_kernels(tiles, weight_format):
    """All that read matrices, by name."""
    tiles = replace(tiles, token_tiles=(1, 4))
    found = {
        "linear": gpu.linear(tiles, 256, 96, weight_format),
        "sparse_up": gpu.sparse_up(tiles, 4, 256, 64, weight_format),
        "sparse_down": gpu.sparse_down(tiles, 4, 96, 64, weight_format, 0.3),
        "latent_query": gpu.latent_query(tiles, 2, 96, 32, 32, 64, 50, weight_format),
        "linear_heads": gpu.linear_heads(tiles, 2, 256, 96, weight_format),
        "value_up": gpu.value_up(tiles, 2, 64, 96, 32, weight_format, "float32"),
    }
    if weight_format in FLOAT_FORMATS:
        found["router"] = gpu.router(tiles, 40, 256, "none", 1e-5, 1.0, weight_format)
    return found


@pytest.mark.parametrize(("weight_format", "language"), [
    *((name, "opencl") for name in gpu.FORMATS), *product(("float16", "q4f16_1"), ("cuda", "metal", "vulkan"))])
def test_matrices_are_read_in_vectors_of_16_bytes(weight_format, language):
    """In every form of every kernel that reads one, in every language."""
    target = find_target(language)
    kernels = matrix_kernels(target.tiles, weight_format)
    functions = {name: func.with_attr("global_symbol", name) for name, func in kernels.items()}
    text = tvm.compile(tvm.IRModule(functions), target.tvm_target).mod.imports[0].inspect_source("")
    assert "weights_ptr" in text
    uses = DEFINITION.sub("", text)
    wide, scales = (len(re.findall(pattern, uses)) for pattern in LOADS[language].values())
    assert wide + scales == uses.count("weights_ptr"), "a load that is not a vector"
    assert (scales > 0) == (weight_format == "q4f16_1") and wide >= scales


@pytest.mark.parametrize("name", GPU_TILES)
def test_sums_are_added_up_for_a_tiles_rows_and_no_others(name):
    """However many rows at a time threadgroup memory allows, and whatever a load holds."""
    for weight_format, load_bytes in product(gpu.FORMATS, (4, 8, 16)):
        gpu.linear(replace(GPU_TILES[name], load_bytes=load_bytes), 64, 64, weight_format)


def test_an_index_beyond_a_private_array_is_refused():
    with grid.kernel(__name__), grid.launch((1,), (1,)):
        array = grid.Local(4, 0.0)
        array.add(3, array[0])
        for i in (-1, 4):
            with pytest.raises(IndexError, match=f"element {i} of a private array of 4"):
                array[i]
            with pytest.raises(IndexError):
                array.set(i, 0.0)


@pytest.mark.parametrize("name", KERNELS)
def test_text(name):
    """Rows are read four floats at a time; no loop over inputs is unrolled further."""
    texts = texts_of(KERNELS[name]())
    for kernel, text in texts.items():
        check(kernel, text)
        assert barriers(text)
    if name in ("linear", "sparse_up", "sparse_down"):
        rows = [text.count("vload4(") - len(re.findall(r"vload4\(0, weights_ptr", text)) for text in texts.values()]
        assert rows == [*TILES.token_tiles, 2 * TILES.prefill_tile // TILES.slices]


def test_text_of_libraries():
    """Every kernel of both kinds of attention, with a draft model and with MLC's functions."""
    target, texts = find_target("android"), defaultdict(dict)
    target = replace(target, tiles=replace(target.tiles, token_tiles=(1, 8)))  # between them loops are the same
    for config, draft in ((MLA, DRAFT), (MLA, None), (GQA, None)):  # MLC's cache is of the MLA kind for the second
        plan = make_plan(config, target, "q4f16_1", 128, 80, draft=draft, mlc=True)
        for part in filter(None, (plan, plan.draft)):
            modules = compile_graph(part.graph, target.tvm_target).mod.imports[0].imports
            found = kernel_sources("\n".join(module.inspect_source() for module in modules))
            for name, func in part.graph.kernels().items():
                factory = json.loads(str(func.attrs[FACTORY]))["name"]
                forms = {kernel: text for kernel, text in found.items()
                         if re.fullmatch(rf"{name}_kernel(_\d+)?", kernel)}
                assert forms, name
                texts[factory] |= {f"{config.attention_type}'s {kernel}": text for kernel, text in forms.items()}
    assert set(texts) == FACTORIES - set(OTHERS)
    for forms in texts.values():
        for kernel, text in forms.items():
            check(kernel, text)
    assert all(barriers(text) for name in ("attention", "rms_norm", "argmax", "top_k") for text in texts[name].values())


def check(kernel, text):
    """No other kernel is declared, indices are 32-bit, barriers stand outside of conditions, and nothing depends on
    subgroups, whose sizes differ between devices."""
    assert text.count("__kernel") == 1, kernel
    assert not re.search(r"\b(u?long|double)\b|sub_?group", text), kernel
    assert all(line.startswith(("for ", "while ")) for around in barriers(text) for line in around), kernel


def barriers(text):
    """Of every barrier, the statements around it within the kernel."""
    found, around = [], []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("}"):
            around.pop()
        if line.endswith("{"):
            around.append(line)
        if "barrier(" in line:
            found.append(around[1:])
    return found
