// Vulkan behind TVM's DeviceAPI, and the facts and counters that Python reads.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>

#include "../shared/device_api.h"
#include "counters.h"
#include "device.h"
#include "instance.h"
#include "module.h"

namespace blockffn::vulkan {
namespace {

namespace ffi = tvm::ffi;

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

ffi::Map<ffi::String, ffi::Any> Describe(const Device& device) {
  const VkPhysicalDeviceLimits& limits = device.properties.limits;
  const auto has = [&device](uint32_t capability) { return FindCapability(capability)->in(device.features); };
  const bool half = has(9) && has(4433);
  return {
      {"name", ffi::String(device.name())},
      {"type", ffi::String(TypeName(device.properties.deviceType))},
      {"version", ffi::String("Vulkan " + VersionText(device.properties.apiVersion))},
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
  DeviceApi<Device>::Register("vulkan");
  ffi::reflection::GlobalDef()
      .def("ffi.Module.load_from_bytes.vulkan", [](const ffi::Bytes& bytes) { return LoadModule(bytes); })
      .def("blockffn.vulkan.devices", DescribeAll)
      .def("blockffn.vulkan.launches", [] { return Counters::Get().launches.load(); })
      .def("blockffn.vulkan.submissions", [] { return Counters::Get().submissions.load(); })
      .def("blockffn.vulkan.barriers", [] { return Counters::Get().barriers.load(); })
      .def("blockffn.vulkan.compilations", [] { return Counters::Get().compilations.load(); })
      .def("blockffn.vulkan.objects", [] { return LiveObjects().load(); })
      .def("blockffn.vulkan.validation_messages", ValidationMessages);
}

}  // namespace

Device& CurrentDevice() { return DeviceApi<Device>::Current(); }

}  // namespace blockffn::vulkan
