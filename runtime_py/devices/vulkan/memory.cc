#include "memory.h"

#include <vector>

#include "../shared/environment.h"

namespace blockffn::vulkan {
namespace {

constexpr VkMemoryPropertyFlags kOwn = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
constexpr VkMemoryPropertyFlags kCached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
constexpr VkMemoryPropertyFlags kMapped = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;

// Whether the host may see kernels' memory.
bool MapsKernels() { return !IsSet("BLOCKFFN_VULKAN_STAGING"); }

}  // namespace

Memory::Memory(VkPhysicalDevice device) {
  vkGetPhysicalDeviceMemoryProperties(device, &found_);
  for (uint32_t heap = 0; heap < found_.memoryHeapCount; ++heap) {
    const auto own = [this](uint32_t of) {
      return (found_.memoryHeaps[of].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0;
    };
    if (own(heap) && (!own(heap_) || found_.memoryHeaps[heap].size > found_.memoryHeaps[heap_].size)) heap_ = heap;
  }
}

std::optional<uint32_t> Memory::Choose(MemoryUse use, uint32_t allowed) const {
  struct Wish {
    VkMemoryPropertyFlags flags;
    bool in_heap;  // in that of kernels' memory
  };
  static const std::vector<Wish> kStaging = {{kMapped | kCached, false}, {kMapped, false}};
  static const std::vector<Wish> kUnmapped = {{kOwn, true}, {kOwn, false}, {0, false}};
  static const std::vector<Wish> kKernels = {
      {kOwn | kMapped | kCached, true}, {kOwn | kMapped, true}, {kOwn, true}, {kOwn, false}, {0, false}};
  for (const Wish& wish : use == MemoryUse::kStaging ? kStaging : MapsKernels() ? kKernels : kUnmapped) {
    for (uint32_t type = 0; type < found_.memoryTypeCount; ++type) {
      const VkMemoryType& memory = found_.memoryTypes[type];
      if ((allowed >> type & 1) != 0 && Has(type, wish.flags) &&
          (memory.propertyFlags & ~(kOwn | kMapped | kCached)) == 0 && (!wish.in_heap || memory.heapIndex == heap_)) {
        return type;
      }
    }
  }
  return std::nullopt;
}

bool Memory::stages() const {
  const auto type = Choose(MemoryUse::kKernels, ~uint32_t{0});
  return !type || !Maps(MemoryUse::kKernels, *type);
}

bool Memory::Maps(MemoryUse use, uint32_t type) const {
  return (use == MemoryUse::kStaging || MapsKernels()) && Has(type, kMapped);
}

bool Memory::Has(uint32_t type, VkMemoryPropertyFlags flags) const {
  return (found_.memoryTypes[type].propertyFlags & flags) == flags;
}

bool Memory::Caches(uint32_t type) const { return Has(type, kCached); }

}  // namespace blockffn::vulkan
