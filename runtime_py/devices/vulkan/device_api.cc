// Vulkan behind TVM's DeviceAPI, and the facts and counters that Python reads.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <algorithm>

#include "counters.h"
#include "device.h"
#include "instance.h"
#include "module.h"

namespace blockffn::vulkan {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAttrKind;

thread_local int current_device = 0;

class VulkanDeviceAPI final : public tvm::runtime::DeviceAPI {
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
        *result = static_cast<int64_t>(on.properties.limits.maxComputeWorkGroupInvocations);
        break;
      case DeviceAttrKind::kWarpSize:
        *result = static_cast<int64_t>(1);  // nothing relies on lanes in step
        break;
      case DeviceAttrKind::kMaxSharedMemoryPerBlock:
        *result = static_cast<int64_t>(on.properties.limits.maxComputeSharedMemorySize);
        break;
      case DeviceAttrKind::kDeviceName:
        *result = ffi::String(on.name());
        break;
      case DeviceAttrKind::kTotalGlobalMemory:
        *result = static_cast<int64_t>(on.total_memory());
        break;
      default:
        *result = nullptr;  // Vulkan does not tell
    }
  }

  void* AllocDataSpace(DLDevice device, size_t bytes, size_t, DLDataType) final {
    return Device::Get(device.device_id).Allocate(bytes);
  }

  void FreeDataSpace(DLDevice device, void* buffer) final { Device::Get(device.device_id).Free(buffer); }

  void StreamSync(DLDevice device, TVMStreamHandle) final { Device::Get(device.device_id).Finish(); }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      DLDevice from_device, DLDevice to_device, DLDataType, TVMStreamHandle) final {
    if (bytes == 0) return;
    const bool reads = from_device.device_type == kDLVulkan, writes = to_device.device_type == kDLVulkan;
    void* source = const_cast<void*>(from);
    if (reads && writes && from_device.device_id == to_device.device_id) {
      Device::Get(from_device.device_id).Copy(source, from_offset, to, to_offset, bytes);
    } else if (reads && writes) {  // other devices cannot see the buffer
      std::vector<char> between(bytes);
      Device::Get(from_device.device_id).Read(source, from_offset, between.data(), bytes);
      Device::Get(to_device.device_id).Write(between.data(), to, to_offset, bytes);
    } else if (reads) {
      Device::Get(from_device.device_id).Read(source, from_offset, static_cast<char*>(to) + to_offset, bytes);
    } else {
      Device::Get(to_device.device_id).Write(static_cast<const char*>(from) + from_offset, to, to_offset, bytes);
    }
  }
};

const char* TypeName(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
      return "discrete GPU";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
      return "integrated GPU";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
      return "virtual GPU";
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
      return "CPU";
    default:
      return "other";
  }
}

std::string Version(uint32_t version) {
  return std::to_string(VK_API_VERSION_MAJOR(version)) + "." + std::to_string(VK_API_VERSION_MINOR(version)) + "." +
         std::to_string(VK_API_VERSION_PATCH(version));
}

ffi::Map<ffi::String, ffi::Any> Describe(const Device& device) {
  const VkPhysicalDeviceLimits& limits = device.properties.limits;
  const auto has = [&device](uint32_t capability) { return FindCapability(capability)->in(device.features); };
  const bool half = has(9) && has(4433);
  return {
      {"name", ffi::String(device.name())},
      {"type", ffi::String(TypeName(device.properties.deviceType))},
      {"version", ffi::String("Vulkan " + Version(device.properties.apiVersion))},
      {"driver", ffi::String(device.driver())},
      {"memory_bytes", static_cast<int64_t>(device.total_memory())},
      {"max_allocation_bytes", static_cast<int64_t>(device.largest_buffer())},
      {"local_memory_bytes", static_cast<int64_t>(limits.maxComputeSharedMemorySize)},
      {"max_work_group_size", static_cast<int64_t>(limits.maxComputeWorkGroupInvocations)},
      {"push_constant_bytes", static_cast<int64_t>(limits.maxPushConstantsSize)},
      {"max_buffers", static_cast<int64_t>(limits.maxPerStageDescriptorStorageBuffers)},
      {"max_groups", static_cast<int64_t>(*std::min_element(limits.maxComputeWorkGroupCount,
                                                            limits.maxComputeWorkGroupCount + 3))},
      {"staging", device.stages()},
      {"fp16", half},
      {"storage_16bit", has(4433)},
      {"storage_8bit", has(4448)},
      {"int8", has(39)},
      {"int16", has(22)},
      {"int64", has(11)},
  };
}

// One per device in order; behind them those that were skipped, with the reason as "unavailable".
ffi::Array<ffi::Any> DescribeAll() {
  ffi::Array<ffi::Any> all;
  for (const auto& device : Device::All()) all.push_back(Describe(*device));
  for (const Device::Skipped& device : Device::AllSkipped()) {
    all.push_back(ffi::Map<ffi::String, ffi::Any>{{"unavailable", ffi::String(device.name + ": " + device.reason)}});
  }
  return all;
}

ffi::Array<ffi::String> ValidationMessages() {
  ffi::Array<ffi::String> messages;
  for (const std::string& message : Instance::Get().ValidationMessages()) messages.push_back(message);
  return messages;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def_packed("device_api.vulkan",
                  [](ffi::PackedArgs, ffi::Any* result) {
                    static auto* api = new VulkanDeviceAPI();
                    *result = static_cast<void*>(static_cast<tvm::runtime::DeviceAPI*>(api));
                  })
      .def("ffi.Module.load_from_bytes.vulkan", [](const ffi::Bytes& bytes) { return LoadModule(bytes); })
      .def("blockffn.vulkan.devices", DescribeAll)
      .def("blockffn.vulkan.memory_in_use", [](int device) { return Device::Get(device).memory_in_use(); })
      .def("blockffn.vulkan.memory_kept", [](int device) { return Device::Get(device).memory_kept(); })
      .def("blockffn.vulkan.launches", [] { return Counters::Get().launches.load(); })
      .def("blockffn.vulkan.submissions", [] { return Counters::Get().submissions.load(); })
      .def("blockffn.vulkan.barriers", [] { return Counters::Get().barriers.load(); })
      .def("blockffn.vulkan.compilations", [] { return Counters::Get().compilations.load(); })
      .def("blockffn.vulkan.objects", [] { return LiveObjects().load(); })
      .def("blockffn.vulkan.validation_messages", ValidationMessages);
}

}  // namespace

Device& CurrentDevice() { return Device::Get(current_device); }

}  // namespace blockffn::vulkan
