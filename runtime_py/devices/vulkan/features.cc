#include "features.h"

#include <algorithm>
#include <cstring>

#include "errors.h"

namespace blockffn::vulkan {
namespace {

// Those that the code generators ask for (targets/vulkan/spirv.py), besides which none is enabled.
// https://registry.khronos.org/vulkan/specs/1.3/html/vkspec.html#spirvenv-capabilities
constexpr Capability kCapabilities[] = {
    {1, "Shader", [](const Features&) { return true; }},
    {9, "Float16", [](const Features& on) { return on.small.shaderFloat16 == VK_TRUE; }},
    {10, "Float64", [](const Features& on) { return on.all.features.shaderFloat64 == VK_TRUE; }},
    {11, "Int64", [](const Features& on) { return on.all.features.shaderInt64 == VK_TRUE; }},
    {22, "Int16", [](const Features& on) { return on.all.features.shaderInt16 == VK_TRUE; }},
    {39, "Int8", [](const Features& on) { return on.small.shaderInt8 == VK_TRUE; }},
    {4433, "StorageBuffer16BitAccess",
     [](const Features& on) { return on.storage16.storageBuffer16BitAccess == VK_TRUE; }},
    {4434, "UniformAndStorageBuffer16BitAccess",
     [](const Features& on) { return on.storage16.uniformAndStorageBuffer16BitAccess == VK_TRUE; }},
    {4448, "StorageBuffer8BitAccess", [](const Features& on) { return on.storage8.storageBuffer8BitAccess == VK_TRUE; }},
    {4449, "UniformAndStorageBuffer8BitAccess",
     [](const Features& on) { return on.storage8.uniformAndStorageBuffer8BitAccess == VK_TRUE; }},
};

}  // namespace

bool HasExtension(VkPhysicalDevice device, const char* name) {
  const char* what = "Vulkan: listing a device's extensions";
  uint32_t count = 0;
  Check(vkEnumerateDeviceExtensionProperties(device, nullptr, &count, nullptr), what);
  std::vector<VkExtensionProperties> found(count);
  Check(vkEnumerateDeviceExtensionProperties(device, nullptr, &count, found.data()), what);
  return std::any_of(found.begin(), found.end(), [name](const VkExtensionProperties& extension) {
    return std::strcmp(extension.extensionName, name) == 0;
  });
}

Features::Features(VkPhysicalDevice device) {
  const auto take = [&](const char* name, auto& features) {
    if (!HasExtension(device, name)) return;
    extensions_.push_back(name);
    features.pNext = all.pNext;
    all.pNext = &features;
  };
  all.pNext = &storage16;
  take(VK_KHR_8BIT_STORAGE_EXTENSION_NAME, storage8);
  take(VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME, small);
  vkGetPhysicalDeviceFeatures2(device, &all);

  const VkPhysicalDeviceFeatures has = all.features;
  all.features = {};
  all.features.shaderFloat64 = has.shaderFloat64;
  all.features.shaderInt64 = has.shaderInt64;
  all.features.shaderInt16 = has.shaderInt16;
  storage16.storageInputOutput16 = VK_FALSE;  // of graphics
  storage16.storagePushConstant16 = storage8.storagePushConstant8 = VK_FALSE;  // numbers have 64 bits
}

const Capability* FindCapability(uint32_t number) {
  for (const Capability& capability : kCapabilities) {
    if (capability.number == number) return &capability;
  }
  return nullptr;
}

}  // namespace blockffn::vulkan
