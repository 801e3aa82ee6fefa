// OpenCL behind TVM's DeviceAPI, and the facts and counters that Python reads.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include "../shared/device_api.h"
#include "device.h"
#include "module.h"

namespace blockffn::opencl {
namespace {

namespace ffi = tvm::ffi;

ffi::Map<ffi::String, ffi::Any> Describe(const Device& device) {
  const std::string extensions = device.Text(CL_DEVICE_EXTENSIONS) + " ";
  const char* type = device.type == CL_DEVICE_TYPE_GPU ? "GPU" : device.type == CL_DEVICE_TYPE_CPU ? "CPU" : "accelerator";
  return {
      {"name", ffi::String(device.Text(CL_DEVICE_NAME))},
      {"type", ffi::String(type)},
      {"platform", ffi::String(device.PlatformText(CL_PLATFORM_NAME))},
      {"version", ffi::String(device.Text(CL_DEVICE_VERSION))},
      {"driver", ffi::String(device.Text(CL_DRIVER_VERSION))},
      {"memory_bytes", static_cast<int64_t>(device.Info<cl_ulong>(CL_DEVICE_GLOBAL_MEM_SIZE))},
      {"max_allocation_bytes", static_cast<int64_t>(device.Info<cl_ulong>(CL_DEVICE_MAX_MEM_ALLOC_SIZE))},
      {"local_memory_bytes", static_cast<int64_t>(device.Info<cl_ulong>(CL_DEVICE_LOCAL_MEM_SIZE))},
      {"max_work_group_size", static_cast<int64_t>(device.Info<size_t>(CL_DEVICE_MAX_WORK_GROUP_SIZE))},
      {"compute_units", static_cast<int64_t>(device.Info<cl_uint>(CL_DEVICE_MAX_COMPUTE_UNITS))},
      {"fp16", extensions.find("cl_khr_fp16 ") != std::string::npos},
  };
}

ffi::Array<ffi::Any> DescribeAll() {
  ffi::Array<ffi::Any> all;
  for (const auto& device : Device::All()) all.push_back(Describe(*device));
  return all;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  DeviceApi<Device>::Register("opencl");
  ffi::reflection::GlobalDef()
      .def("ffi.Module.load_from_bytes.opencl", [](const ffi::Bytes& bytes) { return LoadModule(bytes); })
      .def("blockffn.opencl.devices", DescribeAll)
      .def("blockffn.opencl.objects", [] { return live_objects.load(); })
      .def("blockffn.opencl.launches", [] { return Counters::Get().launches.load(); })
      .def("blockffn.opencl.compilations", [] { return Counters::Get().compilations.load(); });
}

}  // namespace

Device& CurrentDevice() { return DeviceApi<Device>::Current(); }

}  // namespace blockffn::opencl
