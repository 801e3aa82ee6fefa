"""A driver that fails: what is said, and that nothing is left behind. A library between the runtime and the driver
makes a call fail, or lets kernel ``bad`` fail as devices do: what waits for it fails."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from opencl_kernels import ADD, FLOAT32, INT32, POINTER, address, counter, load_kernel

from runtime_py.devices.program_cache import ProgramCache
from runtime_py.tvm_runtime import load_runtime

ROOT = Path(__file__).resolve().parents[3]
BETWEEN = r"""
#include <CL/cl.h>
#include <dlfcn.h>
#include <cstdlib>
#include <cstring>

static bool failed = false;
static bool fails(const char* call) {
  const char* wanted = std::getenv("FAILING_CALL");
  return wanted != nullptr && std::strcmp(wanted, call) == 0;
}
#define DRIVER(call) reinterpret_cast<decltype(&call)>(dlsym(RTLD_NEXT, #call))

extern "C" {
cl_command_queue clCreateCommandQueue(cl_context context, cl_device_id device, cl_command_queue_properties properties,
                                      cl_int* code) {
  if (!fails("clCreateCommandQueue")) return DRIVER(clCreateCommandQueue)(context, device, properties, code);
  *code = CL_OUT_OF_HOST_MEMORY;
  return nullptr;
}
cl_int clEnqueueWriteBuffer(cl_command_queue queue, cl_mem buffer, cl_bool wait, size_t offset, size_t size,
                            const void* from, cl_uint count, const cl_event* events, cl_event* event) {
  if (fails("clEnqueueWriteBuffer")) return CL_OUT_OF_HOST_MEMORY;
  return DRIVER(clEnqueueWriteBuffer)(queue, buffer, wait, offset, size, from, count, events, event);
}
cl_int clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dimensions, const size_t* offset,
                              const size_t* global, const size_t* local, cl_uint count, const cl_event* events,
                              cl_event* event) {
  char name[64] = "";
  clGetKernelInfo(kernel, CL_KERNEL_FUNCTION_NAME, sizeof name, name, nullptr);
  if (std::strcmp(name, "bad") == 0) failed = true;
  return DRIVER(clEnqueueNDRangeKernel)(queue, kernel, dimensions, offset, global, local, count, events, event);
}
cl_int clEnqueueReadBuffer(cl_command_queue queue, cl_mem buffer, cl_bool wait, size_t offset, size_t size, void* to,
                           cl_uint count, const cl_event* events, cl_event* event) {
  return failed ? CL_OUT_OF_RESOURCES
                : DRIVER(clEnqueueReadBuffer)(queue, buffer, wait, offset, size, to, count, events, event);
}
cl_int clGetEventInfo(cl_event event, cl_event_info what, size_t size, void* value, size_t* actual) {
  const cl_int code = DRIVER(clGetEventInfo)(event, what, size, value, actual);
  if (failed && what == CL_EVENT_COMMAND_EXECUTION_STATUS) *static_cast<cl_int*>(value) = CL_OUT_OF_RESOURCES;
  return code;
}
cl_int clFinish(cl_command_queue queue) { return failed ? CL_OUT_OF_RESOURCES : DRIVER(clFinish)(queue); }
}
"""
BEGIN = """
import sys
sys.path[:0] = {paths!r}
from opencl_kernels import ADD, FLOAT32, INT32, POINTER, address, counter, load_kernel
from runtime_py.devices import find_device

def load(name):
    return load_kernel(device, name, ADD.replace("add", name), (POINTER, FLOAT32, INT32))

device = find_device({device!r})
"""
LAUNCH = """
kernels = {name: load(name) for name in ("before", "bad", "after")}
x = device.zeros((8,), "float32")
y = device.host(x)
def launch(name):
    kernels[name](address(x), 1.0, 8, 1, 8)
"""


@pytest.fixture(scope="module")
def between(device, tmp_path_factory):
    """The library."""
    folder = tmp_path_factory.mktemp("between")
    (folder / "between.cc").write_text(BETWEEN)
    subprocess.run([os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-DCL_TARGET_OPENCL_VERSION=120", "-o",
                    folder / "between.so", folder / "between.cc", "-lOpenCL", "-ldl"], check=True)
    return folder / "between.so"


@pytest.fixture
def said(device, between):
    """said(code, **environment): the last line on stderr of a program with that library."""
    def said(code, **environment):
        begin = BEGIN.format(paths=[str(Path(__file__).parent)], device=device.name)
        done = subprocess.run([sys.executable, "-c", begin + code], cwd=ROOT, capture_output=True, text=True,
                              timeout=120, env=os.environ | {"LD_PRELOAD": str(between)} | environment)
        return done.stderr.splitlines()[-1] if done.stderr else ""
    return said


@pytest.mark.parametrize(("wait", "call"), [
    ("device.wait()", "clFinish"), ("device.host(x)", "clEnqueueReadBuffer"), ("device.tensor(y)", "writing a buffer")])
def test_an_error_that_shows_later_names_the_last_kernels(said, device, wait, call):
    message = said(LAUNCH + f"launch('before')\ndevice.wait()\nlaunch('after')\nlaunch('bad')\nlaunch('after')\n{wait}")
    assert message.endswith(f"UserError: device {device.name}: OpenCL: {call} failed: CL_OUT_OF_RESOURCES (-5); one of "
                            "the kernels before it may be the cause, the last of 3: after bad after; BLOCKFFN_SYNC=1 "
                            "waits behind every launch and names the one that fails")


def test_of_many_kernels_the_last_are_named(said):
    message = said(LAUNCH + "launch('bad')\nfor _ in range(20):\n    launch('after')\ndevice.wait()")
    assert f"the last of 21:{8 * ' after'}; BLOCKFFN_SYNC" in message


def test_waiting_behind_every_launch_names_the_kernel(said):
    code = LAUNCH + "launch('before')\nlaunch('bad')\nprint('further')"
    assert said(code, BLOCKFFN_SYNC="1").endswith(
        "RuntimeError: OpenCL: running kernel bad failed: CL_OUT_OF_RESOURCES (-5)")
    assert not said(code, BLOCKFFN_SYNC="0")


@pytest.mark.parametrize("call", ["clCreateCommandQueue", "clEnqueueWriteBuffer"])
def test_a_call_that_fails_leaves_nothing_behind(said, call):
    """Objects: what exists of the driver's. A second failure must not add to what the first left."""
    message = said("""
found = []
for _ in range(3):
    try:
        device.zeros((8,), "float32")
    except Exception as error:
        message = str(error)
    found.append((counter("objects"), counter("memory_in_use", device.index)))
assert found[0][1] == 0 and len(set(found)) == 1, found
raise SystemExit(f"{found[0][0]} {message}")""", FAILING_CALL=call)
    left = {"clCreateCommandQueue": 0, "clEnqueueWriteBuffer": 3}[call]  # context, queue, and the buffer kept
    assert message.startswith(f"{left} device ") and f"OpenCL: {call}" in message
    assert "failed: CL_OUT_OF_HOST_MEMORY (-6)" in message


@pytest.mark.parametrize("source", [ADD, ADD.replace("x[i] +=", "nowhere[i] +="), ADD.replace("add", "subtract")],
                         ids=["binary that cannot be stored", "does not compile", "another name"])
def test_a_kernel_that_cannot_be_made_leaves_nothing_behind(device, source, monkeypatch, tmp_path):
    def refuse(key, binary):
        raise ValueError("no place")

    monkeypatch.setenv("BLOCKFFN_CACHE", str(tmp_path))
    x, ffi = device.zeros((1,), "float32"), load_runtime()
    objects = counter("objects")
    if source is ADD:
        ffi.register_global_func("blockffn.opencl.store_binary", refuse, override=True)
    try:
        with pytest.raises((RuntimeError, ValueError), match="no place|BUILD_PROGRAM_FAILURE|INVALID_KERNEL_NAME"):
            load_kernel(device, "add", source, (POINTER, FLOAT32, INT32))(address(x), 1.0, 1, 1, 1)
    finally:
        ProgramCache("opencl").register(ffi)
    gc.collect()
    assert counter("objects") == objects
