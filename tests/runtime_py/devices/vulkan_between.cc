// Between the Vulkan runtime and its driver, in tests: makes calls fail, keeps work from a device, shows other memory.
#include <dlfcn.h>
#include <vulkan/vulkan.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <set>
#include <sstream>
#include <string>
#include <utility>

#define REAL(call) reinterpret_cast<decltype(&call)>(dlsym(RTLD_NEXT, #call))

// FAILING_CALL fails with FAILING_CODE; only the first FAILING_TIMES times if that is set.
static VkResult failure(const char* call) {
  static int times = 0;
  const char *wanted = std::getenv("FAILING_CALL"), *most = std::getenv("FAILING_TIMES");
  if (wanted == nullptr || std::strcmp(wanted, call) != 0) return VK_SUCCESS;
  if (most != nullptr && times++ >= std::atoi(most)) return VK_SUCCESS;
  return static_cast<VkResult>(std::atoi(std::getenv("FAILING_CODE")));
}
#define BETWEEN(call, parameters, arguments)        \
  extern "C" VkResult call parameters {             \
    const VkResult result = failure(#call);         \
    return result ? result : REAL(call) arguments;  \
  }
BETWEEN(vkCreateFence, (VkDevice device, const VkFenceCreateInfo* info, const VkAllocationCallbacks* a, VkFence* made),
        (device, info, a, made))
BETWEEN(vkMapMemory, (VkDevice device, VkDeviceMemory memory, VkDeviceSize offset, VkDeviceSize size,
                      VkMemoryMapFlags flags, void** made), (device, memory, offset, size, flags, made))
BETWEEN(vkCreateComputePipelines,
        (VkDevice device, VkPipelineCache cache, uint32_t count, const VkComputePipelineCreateInfo* info,
         const VkAllocationCallbacks* a, VkPipeline* made), (device, cache, count, info, a, made))
BETWEEN(vkEnumerateDeviceExtensionProperties,
        (VkPhysicalDevice device, const char* layer, uint32_t* count, VkExtensionProperties* found),
        (device, layer, count, found))

// BACKWARDS: the devices in the opposite order.
extern "C" VkResult vkEnumeratePhysicalDevices(VkInstance instance, uint32_t* count, VkPhysicalDevice* devices) {
  if (const VkResult result = failure("vkEnumeratePhysicalDevices")) return result;
  const VkResult result = REAL(vkEnumeratePhysicalDevices)(instance, count, devices);
  if (devices != nullptr && std::getenv("BACKWARDS") != nullptr) std::reverse(devices, devices + *count);
  return result;
}

// OLD: devices of Vulkan 1.0; USELESS: devices whose queues run no kernels.
extern "C" void vkGetPhysicalDeviceProperties(VkPhysicalDevice device, VkPhysicalDeviceProperties* found) {
  REAL(vkGetPhysicalDeviceProperties)(device, found);
  if (std::getenv("OLD") != nullptr) found->apiVersion = VK_MAKE_API_VERSION(0, 1, 0, 68);
}
extern "C" void vkGetPhysicalDeviceQueueFamilyProperties(VkPhysicalDevice device, uint32_t* count,
                                                         VkQueueFamilyProperties* found) {
  REAL(vkGetPhysicalDeviceQueueFamilyProperties)(device, count, found);
  if (found == nullptr || std::getenv("USELESS") == nullptr) return;
  for (uint32_t family = 0; family < *count; ++family) found[family].queueFlags = VK_QUEUE_GRAPHICS_BIT;
}

// With HOLDING set a device does not begin with a batch before somebody waits for it, or for one behind it.
struct Batch {
  VkQueue queue;
  VkCommandBuffer commands;
  VkFence fence;
  std::set<const void*> uses;  // buffers and pipelines
};
static std::deque<Batch> held;
static std::set<const void*> recorded;  // what the commands use that were not submitted yet

extern "C" VkResult vkQueueSubmit(VkQueue queue, uint32_t count, const VkSubmitInfo* info, VkFence fence) {
  const std::set<const void*> uses = std::exchange(recorded, {});
  if (const VkResult result = failure("vkQueueSubmit")) return result;
  if (std::getenv("HOLDING") == nullptr) return REAL(vkQueueSubmit)(queue, count, info, fence);
  held.push_back({queue, *info->pCommandBuffers, fence, uses});
  return VK_SUCCESS;
}

extern "C" VkResult vkWaitForFences(VkDevice device, uint32_t count, const VkFence* fences, VkBool32 all,
                                    uint64_t limit) {
  if (const VkResult result = failure("vkWaitForFences")) return result;
  for (bool found = false; !found && !held.empty(); held.pop_front()) {
    const Batch& batch = held.front();
    VkSubmitInfo info{VK_STRUCTURE_TYPE_SUBMIT_INFO};
    info.commandBufferCount = 1;
    info.pCommandBuffers = &batch.commands;
    found = batch.fence == *fences;
    if (const VkResult result = REAL(vkQueueSubmit)(batch.queue, 1, &info, batch.fence)) return result;
  }
  return REAL(vkWaitForFences)(device, count, fences, all, limit);
}

// What is destroyed although a batch that was not waited for uses it is told.
extern "C" void vkUpdateDescriptorSets(VkDevice device, uint32_t count, const VkWriteDescriptorSet* writes,
                                       uint32_t copied, const VkCopyDescriptorSet* copies) {
  for (uint32_t i = 0; i < count; ++i) recorded.insert(writes[i].pBufferInfo->buffer);
  REAL(vkUpdateDescriptorSets)(device, count, writes, copied, copies);
}
extern "C" void vkCmdBindPipeline(VkCommandBuffer commands, VkPipelineBindPoint point, VkPipeline pipeline) {
  recorded.insert(pipeline);
  REAL(vkCmdBindPipeline)(commands, point, pipeline);
}
static void destroyed(const char* what, const void* object) {
  bool used = recorded.count(object) > 0;
  for (const Batch& batch : held) used |= batch.uses.count(object) > 0;
  if (used) std::printf("a %s is destroyed that is in use\n", what);
  std::fflush(stdout);
}
extern "C" void vkDestroyBuffer(VkDevice device, VkBuffer buffer, const VkAllocationCallbacks* callbacks) {
  destroyed("buffer", buffer);
  REAL(vkDestroyBuffer)(device, buffer, callbacks);
}
extern "C" void vkDestroyPipeline(VkDevice device, VkPipeline pipeline, const VkAllocationCallbacks* callbacks) {
  destroyed("pipeline", pipeline);
  REAL(vkDestroyPipeline)(device, pipeline, callbacks);
}

// MEMORY_TYPES: the flags of the types of memory that a device shows; MEMORY_ALLOWED: those for buffers, a bit each.
// What is then taken is printed.
extern "C" void vkGetPhysicalDeviceMemoryProperties(VkPhysicalDevice device, VkPhysicalDeviceMemoryProperties* found) {
  REAL(vkGetPhysicalDeviceMemoryProperties)(device, found);
  const char* types = std::getenv("MEMORY_TYPES");
  if (types == nullptr) return;
  std::istringstream flags(types);
  found->memoryTypeCount = 0;
  for (uint32_t each; flags >> each;) found->memoryTypes[found->memoryTypeCount++] = {each, 0};
}

extern "C" void vkGetBufferMemoryRequirements(VkDevice device, VkBuffer buffer, VkMemoryRequirements* needs) {
  REAL(vkGetBufferMemoryRequirements)(device, buffer, needs);
  if (const char* allowed = std::getenv("MEMORY_ALLOWED")) needs->memoryTypeBits = std::atoi(allowed);
}

extern "C" VkResult vkAllocateMemory(VkDevice device, const VkMemoryAllocateInfo* info,
                                     const VkAllocationCallbacks* callbacks, VkDeviceMemory* made) {
  if (const VkResult result = failure("vkAllocateMemory")) return result;
  VkMemoryAllocateInfo real = *info;
  if (std::getenv("MEMORY_TYPES") != nullptr) {
    std::printf("memory of type %u\n", info->memoryTypeIndex);
    std::fflush(stdout);
    real.memoryTypeIndex = 0;
  }
  return REAL(vkAllocateMemory)(device, &real, callbacks, made);
}
