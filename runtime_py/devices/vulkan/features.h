// What shaders can need of a device beyond Vulkan 1.1's minimum.
#pragma once

#include <vulkan/vulkan.h>

#include <vector>

namespace blockffn::vulkan {

bool HasExtension(VkPhysicalDevice device, const char* name);

// The optional features that kernels can use, as one device has them; all others are off.
class Features {
 public:
  explicit Features(VkPhysicalDevice device);
  Features(const Features&) = delete;

  // For vkCreateDevice.
  const void* chain() const { return &all; }
  const std::vector<const char*>& extensions() const { return extensions_; }

  VkPhysicalDeviceFeatures2 all{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
  VkPhysicalDevice16BitStorageFeatures storage16{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES};
  VkPhysicalDevice8BitStorageFeatures storage8{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES};
  VkPhysicalDeviceShaderFloat16Int8Features small{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES};

 private:
  std::vector<const char*> extensions_;
};

// A SPIR-V capability that the runtime knows, and the feature that it needs.
struct Capability {
  uint32_t number;
  const char* name;
  bool (*in)(const Features&);
};

// Null when the runtime does not know it.
const Capability* FindCapability(uint32_t number);

}  // namespace blockffn::vulkan
