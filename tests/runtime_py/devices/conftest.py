"""Devices to test on, where there are some."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from building import build
from checkpoints import write_random_checkpoint
from machine import opencl_device, vulkan_device

ROOT, HERE = Path(__file__).resolve().parents[3], Path(__file__).resolve().parent
BEGIN = f"""
import os
import sys
sys.path[:0] = [{str(HERE)!r}]
from device_kernels import empty
from vulkan_kernels import address, counter, load_add
from runtime_py.devices import find_device

def fail(call, code):
    os.environ["FAILING_CODE"], os.environ["FAILING_CALL"] = str(code), call

def ask(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("nothing")

vulkan = find_device("vulkan")
"""


@pytest.fixture(scope="session")
def device(request):
    """The OpenCL device for what is computed in float32; with parameter True the one for float16."""
    return opencl_device(half=getattr(request, "param", False))


@pytest.fixture(scope="module", params=[opencl_device, vulkan_device], ids=["opencl", "vulkan"])
def each_device(request):
    """A device of every kind, one after the other: what is computed in float32."""
    return request.param()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """built(config, quantization, target): a model with random weights, or the demo (None), in a
    folder."""
    @cache
    def built(config, quantization, target):
        folder, model = tmp_path_factory.mktemp("built"), ()
        if config is not None:
            write_random_checkpoint(folder / "checkpoint", config)
            model = ("--model", folder / "checkpoint")
        build(*model, "--quantization", quantization, "--target", target, "--no-mlc", "-o", folder / "model",
              "-q")
        return folder / "model"
    return built


@pytest.fixture(scope="session")
def vulkan():
    """The first Vulkan device."""
    return vulkan_device()


@pytest.fixture(scope="session")
def between(vulkan, tmp_path_factory):
    """The library made of vulkan_between.cc."""
    library = tmp_path_factory.mktemp("between") / "between.so"
    subprocess.run([os.environ.get("CXX", "c++"), "-std=c++17", "-shared", "-fPIC", "-o", library,
                    HERE / "vulkan_between.cc", "-Wl,--no-as-needed", "-lvulkan", "-ldl"], check=True)
    return library


@pytest.fixture
def said(between):
    """said(code, **environment): what a program with that library and device ``vulkan`` prints, by lines."""
    def said(code, **environment):
        done = subprocess.run([sys.executable, "-c", BEGIN + code], cwd=ROOT, capture_output=True, text=True,
                              timeout=120, env=os.environ | {"LD_PRELOAD": str(between)} | environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()
    return said
