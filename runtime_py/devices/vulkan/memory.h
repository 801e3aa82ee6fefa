// The types of memory that a device has, and which of them buffers are in.
#pragma once

#include <vulkan/vulkan.h>

#include <cstddef>
#include <cstdint>
#include <optional>

namespace blockffn::vulkan {

enum class MemoryUse { kKernels, kStaging };

// Kernels' memory is that of the largest heap of the device's own: mapped where the host sees it, which is so on
// unified memory. Other memory is reached through staging memory, which the host should read through its caches.
class Memory {
 public:
  explicit Memory(VkPhysicalDevice device);

  size_t bytes() const { return found_.memoryHeaps[heap_].size; }  // of that heap
  // Whether the host reaches kernels' memory through other memory only, as far as that is known without a buffer.
  bool stages() const;

  // The type of memory for a buffer that may be in `allowed` types, a bit each; none when there is no such memory.
  std::optional<uint32_t> Choose(MemoryUse use, uint32_t allowed) const;
  bool Maps(MemoryUse use, uint32_t type) const;  // whether the host sees such memory
  bool Caches(uint32_t type) const;               // and through its caches

 private:
  bool Has(uint32_t type, VkMemoryPropertyFlags flags) const;

  VkPhysicalDeviceMemoryProperties found_{};
  uint32_t heap_ = 0;
};

}  // namespace blockffn::vulkan
