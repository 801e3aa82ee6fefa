// OpenCL behind TVM's DeviceAPI, and the facts and counters that Python reads.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include "device.h"
#include "module.h"

namespace blockffn::opencl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAttrKind;

thread_local int current_device = 0;

class OpenCLDeviceAPI final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(DLDevice device) final { current_device = device.device_id; }

  void GetAttr(DLDevice device, DeviceAttrKind kind, ffi::Any* result) final {
    const bool exists = device.device_id >= 0 && static_cast<size_t>(device.device_id) < Device::All().size();
    if (kind == DeviceAttrKind::kExist) {
      *result = static_cast<int64_t>(exists);
      return;
    }
    const Device& on = Device::Get(device.device_id);
    switch (kind) {
      case DeviceAttrKind::kMaxThreadsPerBlock:
        *result = static_cast<int64_t>(on.Info<size_t>(CL_DEVICE_MAX_WORK_GROUP_SIZE));
        break;
      case DeviceAttrKind::kWarpSize:
        *result = static_cast<int64_t>(1);  // nothing relies on lanes in step
        break;
      case DeviceAttrKind::kMaxSharedMemoryPerBlock:
        *result = static_cast<int64_t>(on.Info<cl_ulong>(CL_DEVICE_LOCAL_MEM_SIZE));
        break;
      case DeviceAttrKind::kDeviceName:
        *result = ffi::String(on.Text(CL_DEVICE_NAME));
        break;
      case DeviceAttrKind::kMultiProcessorCount:
        *result = static_cast<int64_t>(on.Info<cl_uint>(CL_DEVICE_MAX_COMPUTE_UNITS));
        break;
      case DeviceAttrKind::kDriverVersion:
        *result = ffi::String(on.Text(CL_DRIVER_VERSION));
        break;
      case DeviceAttrKind::kTotalGlobalMemory:
        *result = static_cast<int64_t>(on.Info<cl_ulong>(CL_DEVICE_GLOBAL_MEM_SIZE));
        break;
      default:
        *result = nullptr;  // OpenCL does not tell
    }
  }

  void* AllocDataSpace(DLDevice device, size_t bytes, size_t, DLDataType) final {
    return Device::Get(device.device_id).Allocate(bytes);
  }

  void FreeDataSpace(DLDevice device, void* buffer) final {
    Device::Get(device.device_id).Free(static_cast<cl_mem>(buffer));
  }

  void StreamSync(DLDevice device, TVMStreamHandle) final { Device::Get(device.device_id).Finish(); }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      DLDevice from_device, DLDevice to_device, DLDataType, TVMStreamHandle) final {
    if (bytes == 0) return;
    const bool reads = from_device.device_type == kDLOpenCL, writes = to_device.device_type == kDLOpenCL;
    const auto source = static_cast<cl_mem>(const_cast<void*>(from));
    if (reads && writes && from_device.device_id == to_device.device_id) {
      Device::Get(from_device.device_id).Copy(source, from_offset, static_cast<cl_mem>(to), to_offset, bytes);
    } else if (reads && writes) {  // other contexts cannot see the buffer
      std::vector<char> between(bytes);
      Device::Get(from_device.device_id).Read(source, from_offset, between.data(), bytes);
      Device::Get(to_device.device_id).Write(between.data(), static_cast<cl_mem>(to), to_offset, bytes);
    } else if (reads) {
      Device::Get(from_device.device_id).Read(source, from_offset, static_cast<char*>(to) + to_offset, bytes);
    } else {
      Device::Get(to_device.device_id)
          .Write(static_cast<const char*>(from) + from_offset, static_cast<cl_mem>(to), to_offset, bytes);
    }
  }
};

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
  ffi::reflection::GlobalDef()
      .def_packed("device_api.opencl",
                  [](ffi::PackedArgs, ffi::Any* result) {
                    static auto* api = new OpenCLDeviceAPI();
                    *result = static_cast<void*>(static_cast<tvm::runtime::DeviceAPI*>(api));
                  })
      .def("ffi.Module.load_from_bytes.opencl", [](const ffi::Bytes& bytes) { return LoadModule(bytes); })
      .def("blockffn.opencl.devices", DescribeAll)
      .def("blockffn.opencl.memory_in_use", [](int device) { return Device::Get(device).memory_in_use(); })
      .def("blockffn.opencl.memory_kept", [](int device) { return Device::Get(device).memory_kept(); })
      .def("blockffn.opencl.objects", [] { return live_objects.load(); })
      .def("blockffn.opencl.launches", [] { return Counters::Get().launches.load(); })
      .def("blockffn.opencl.compilations", [] { return Counters::Get().compilations.load(); });
}

}  // namespace

Device& CurrentDevice() { return Device::Get(current_device); }

}  // namespace blockffn::opencl
