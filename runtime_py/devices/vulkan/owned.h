// Owners of Vulkan objects: destroyed with their owner, and counted.
#pragma once

#include <vulkan/vulkan.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>

#include "errors.h"

namespace blockffn::vulkan {

// How many objects have an owner now: what does not come back to a number leaks.
inline std::atomic<int64_t>& LiveObjects() {
  static std::atomic<int64_t> count{0};
  return count;
}

template <class Object, void(VKAPI_PTR* destroy)(VkDevice, Object, const VkAllocationCallbacks*)>
class Owned {
 public:
  Owned() = default;
  Owned(VkDevice device, Object object) : device_(device), object_(object) { ++LiveObjects(); }
  Owned(Owned&& other) noexcept : device_(other.device_), object_(std::exchange(other.object_, VK_NULL_HANDLE)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(object_, other.object_);
    return *this;
  }
  ~Owned() {
    if (object_ == VK_NULL_HANDLE) return;
    destroy(device_, object_, nullptr);
    --LiveObjects();
  }

  Object get() const { return object_; }

 private:
  VkDevice device_ = VK_NULL_HANDLE;
  Object object_ = VK_NULL_HANDLE;
};

using OwnedBuffer = Owned<VkBuffer, vkDestroyBuffer>;
using OwnedMemory = Owned<VkDeviceMemory, vkFreeMemory>;
using OwnedFence = Owned<VkFence, vkDestroyFence>;
using OwnedCommandPool = Owned<VkCommandPool, vkDestroyCommandPool>;
using OwnedDescriptorPool = Owned<VkDescriptorPool, vkDestroyDescriptorPool>;
using OwnedSetLayout = Owned<VkDescriptorSetLayout, vkDestroyDescriptorSetLayout>;
using OwnedPipelineLayout = Owned<VkPipelineLayout, vkDestroyPipelineLayout>;
using OwnedShader = Owned<VkShaderModule, vkDestroyShaderModule>;
using OwnedPipelineCache = Owned<VkPipelineCache, vkDestroyPipelineCache>;
using OwnedPipeline = Owned<VkPipeline, vkDestroyPipeline>;

// Makes an object with one of Vulkan's vkCreate... functions, or throws RuntimeError "`what` failed: VK_...".
template <class Owner, class Create, class Info, class Object = decltype(std::declval<Owner>().get())>
Owner Make(Create create, VkDevice device, const Info& info, const std::string& what) {
  Object object = VK_NULL_HANDLE;
  Check(create(device, &info, nullptr, &object), what);
  return Owner(device, object);
}

}  // namespace blockffn::vulkan
