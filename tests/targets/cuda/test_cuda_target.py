"""The target "cuda": which architectures there are, what a library holds of kernels, what is said where that fails."""

import json
import sys

import pytest
from building import build
from module_files import kernels_of, packed_modules, read_cuda, read_fatbin
from small_library import small_graph

from blockffn_mlc.errors import UserError
from blockffn_mlc.libraries import write_libraries
from targets import find_target
from targets.cuda.compilers import Nvcc, Nvrtc
from targets.cuda.module import split

ARCHITECTURES = "sm_80,sm_87,sm_90"


def written(folder, architectures=None):
    """The modules in a library of one kernel, ``add``."""
    write_libraries(small_graph(), find_target("cuda", architectures=architectures), folder / "library", "small_test_",
                    lambda stage: None)
    return packed_modules(folder / "library.so")


def check_machine_code(folder, architectures):
    form, functions, code = read_cuda(written(folder, architectures)["cuda"])
    assert form == "fatbin"
    assert functions == {"add_kernel": ([(3, 64, 1), (3, 64, 1), (0, 64, 1)], ["blockIdx.x", "threadIdx.x"])}
    parts = read_fatbin(code)
    names = architectures.split(",")
    assert [part[:2] for part in parts] == [*(("elf", name) for name in names), ("ptx", names[-1])]
    assert all(kernels_of(content)["add_kernel"] > 0 for kind, _, content in parts if kind == "elf")
    report = json.loads((folder / "library.json").read_text())
    assert report["compiler"] and list(report["kernels"]) == ["add_kernel"]
    kernel = report["kernels"]["add_kernel"]
    assert kernel["threads"] == 32 and set(kernel) == {"threads", *names}
    for name in names:
        assert kernel[name]["registers"] > 4 and kernel[name]["shared"] == 128  # 32 floats
        assert kernel[name]["spill_stores"] == kernel[name]["spill_loads"] == kernel[name]["stack"] == 0
        assert 0 < kernel[name]["occupancy"] <= 1


@pytest.mark.parametrize("architectures", [ARCHITECTURES, "sm_86"])
def test_a_library_holds_machine_code_for_each_architecture(compiler, tmp_path, architectures):
    check_machine_code(tmp_path, architectures)


def test_nvcc_does_the_same(only_nvcc, tmp_path):
    assert isinstance(only_nvcc, Nvcc)
    check_machine_code(tmp_path, "sm_80,sm_90")


def test_without_a_compiler_a_library_holds_source(no_compiler, tmp_path):
    assert "no CUDA compiler was found" in find_target("cuda").note and "pip install" in find_target("cuda").note
    form, functions, code = read_cuda(written(tmp_path)["cuda"])
    assert form == "cuda" and list(functions) == ["add_kernel"]
    assert b"__launch_bounds__(32, 16) add_kernel(" in code
    assert not (tmp_path / "library.json").exists()


def test_the_build_says_what_a_library_without_machine_code_is(no_compiler, checkpoint):
    result = build("--model", checkpoint, "--target", "cuda", "--no-mlc", "--dry-run")
    said = " ".join(result.stderr.split())
    assert "cuda: no CUDA compiler was found: the library will hold source" in said and "nvidia-cuda-nvrtc" in said


def test_architectures_need_a_compiler(no_compiler):
    with pytest.raises(UserError, match="--arch sm_90: no CUDA compiler was found; install one .* leave --arch out"):
        find_target("cuda", architectures="sm_90")


@pytest.mark.parametrize(("options", "words"), [
    (["--target", "cuda", "--arch", "sm_12"], ["--arch sm_12", "does not compile for it", "sm_80, "]),
    (["--target", "cuda", "--arch", "sm_80,volta"], ["--arch sm_80,volta", "'volta' is no architecture", "sm_80"]),
    (["--target", "cuda", "--arch", "sm_80,"], ["'' is no architecture"]),
    (["--target", "cuda:mma", "--arch", "sm_90,sm_75"], ["--arch sm_75: target cuda:mma", "as of sm_80"]),
    (["--target", "android", "--arch", "sm_80"], ["target android has no architectures", "--target cuda"]),
])
def test_bad_architectures_get_one_sentence(compiler, checkpoint, options, words):
    result = build("--model", checkpoint, *options, "--dry-run", check=False)
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 1 and all(word in error for word in words), error


def test_what_the_compiler_refuses_is_said(compiler):
    with pytest.raises(UserError, match=r"refuses the kernels \(.*error.*\); choose other --arch"):
        compiler.cubin("nonsense", "sm_80")


def test_a_compiler_that_is_gone_is_said():
    with pytest.raises(UserError, match="/nowhere/nvcc cannot be run .*No such file.*pip install"):
        Nvcc("/nowhere/nvcc").cubin("", "sm_80")


def test_an_incomplete_package_is_not_taken(monkeypatch, tmp_path):
    """Of NVIDIA's packages all four are needed."""
    folder = tmp_path / "nvidia" / "cu13"
    needed = ["lib/libnvrtc.so.13", "lib/libnvfatbin.so.13", "include/cuda_fp16.h", "include/cccl/nv/target"]
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    for name in needed:
        assert Nvrtc.find() is None
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert Nvrtc.find() == folder


def test_only_modules_of_source_are_split():
    for damaged in (b"", b"\4\0\0\0\0\0\0\0cuda", b"\3\0\0\0\0\0\0\0ptx" + bytes(16)):
        with pytest.raises(RuntimeError, match="in another way"):
            split(damaged)
