// Vulkan's entry point for this process, with validation layers where the environment asks for them.
#pragma once

#include <vulkan/vulkan.h>

#include <mutex>
#include <string>
#include <vector>

namespace blockffn::vulkan {

class Instance {
 public:
  // The only one; made at the first call. Throws when validation was asked for and is not installed.
  static Instance& Get();

  // All devices, discrete GPUs first; empty without a driver. Throws when no driver works.
  std::vector<VkPhysicalDevice> PhysicalDevices() const;

  // What the validation layers reported so far, the first 1000; always empty without BLOCKFFN_VULKAN_VALIDATION=1.
  std::vector<std::string> ValidationMessages();
  void Report(const char* message);

 private:
  Instance();

  VkInstance instance_ = VK_NULL_HANDLE;  // none without a driver
  std::mutex mutex_;
  std::vector<std::string> messages_;
};

// The queue family that runs kernels; -1 where there is none.
int ComputeFamily(VkPhysicalDevice device);

// A version of Vulkan as people write it: "1.1.0".
std::string VersionText(uint32_t version);

}  // namespace blockffn::vulkan
