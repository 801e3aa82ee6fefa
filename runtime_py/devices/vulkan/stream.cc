#include "stream.h"

#include <utility>

#include "../shared/environment.h"
#include "counters.h"

namespace blockffn::vulkan {
namespace {

constexpr VkPipelineStageFlags kWork = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
constexpr VkDeviceSize kAlignment = 256;  // the largest that a device may ask of uniform buffers' offsets

}  // namespace

Stream::Stream(VkDevice device, uint32_t family, std::function<std::unique_ptr<Buffer>()> make_staging)
    : device_(device), make_staging_(std::move(make_staging)) {
  vkGetDeviceQueue(device, family, 0, &queue_);
  VkCommandPoolCreateInfo pool{VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO};
  pool.flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT;
  pool.queueFamilyIndex = family;
  pool_ = Make<OwnedCommandPool>(vkCreateCommandPool, device, pool, "Vulkan: vkCreateCommandPool");
  for (Batch& batch : batches_) {
    VkCommandBufferAllocateInfo commands{VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO};
    commands.commandPool = pool_.get();
    commands.commandBufferCount = 1;
    Check(vkAllocateCommandBuffers(device, &commands, &batch.commands), "Vulkan: vkAllocateCommandBuffers");
    VkFenceCreateInfo fence{VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    batch.done = Make<OwnedFence>(vkCreateFence, device, fence, "Vulkan: vkCreateFence");
    const VkDescriptorPoolSize sizes[] = {{VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, kDescriptors},
                                          {VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER, kCommands}};
    VkDescriptorPoolCreateInfo descriptors{VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO};
    descriptors.maxSets = kCommands;
    descriptors.poolSizeCount = 2;
    descriptors.pPoolSizes = sizes;
    batch.descriptors =
        Make<OwnedDescriptorPool>(vkCreateDescriptorPool, device, descriptors, "Vulkan: vkCreateDescriptorPool");
  }
}

void Stream::Reserve(uint32_t descriptors, size_t staging) {
  const auto room = [&] {
    const Batch& batch = current();
    return batch.recorded < kCommands && batch.descriptors_used + descriptors <= kDescriptors &&
           batch.staging_used + staging <= kStagingBytes;
  };
  if (recording_ && !room()) Submit();
  if (!recording_) Begin();
  if (staging > 0 && !current().staging) current().staging = make_staging_();
  ++current().recorded;
}

// Takes the batch after the current one, when the device is done with its commands.
void Stream::Begin() {
  Batch& next = batches_[(last_ + 1) % kBatches];
  Wait(next.number);
  const VkFence fence = next.done.get();
  Check(vkResetFences(device_, 1, &fence), "Vulkan: vkResetFences");
  Check(vkResetDescriptorPool(device_, next.descriptors.get(), 0), "Vulkan: vkResetDescriptorPool");
  VkCommandBufferBeginInfo begin{VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  begin.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  Check(vkBeginCommandBuffer(next.commands, &begin), "Vulkan: vkBeginCommandBuffer");
  next.number = ++last_;
  next.lost = false;
  next.recorded = next.launches = next.descriptors_used = 0;
  next.staging_used = 0;
  next.first.clear();
  next.last.clear();
  recording_ = true;
}

VkDescriptorSet Stream::AllocateSet(VkDescriptorSetLayout layout, uint32_t descriptors) {
  current().descriptors_used += descriptors;
  VkDescriptorSetAllocateInfo info{VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO};
  info.descriptorPool = current().descriptors.get();
  info.descriptorSetCount = 1;
  info.pSetLayouts = &layout;
  VkDescriptorSet set = VK_NULL_HANDLE;
  Check(vkAllocateDescriptorSets(device_, &info, &set), "Vulkan: vkAllocateDescriptorSets");
  return set;
}

Stream::Slice Stream::Stage(size_t bytes) {
  Batch& batch = current();
  const Slice slice{batch.staging->buffer.get(), batch.staging_used, batch.staging->host + batch.staging_used};
  batch.staging_used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return slice;
}

void Stream::Order(const std::vector<Access>& accesses) {
  bool depends = std::exchange(lost_barriers_, false);
  for (const Access& access : accesses) {
    const Buffer& buffer = *access.buffer;
    depends |= buffer.written_in == span_ || (access.writes && buffer.read_in == span_);
  }
  if (depends) {
    Barrier(kWork, kWork,
            VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
                VK_ACCESS_TRANSFER_WRITE_BIT);
    ++span_;
    ++Counters::Get().barriers;
  }
  for (const Access& access : accesses) {
    (access.writes ? access.buffer->written_in : access.buffer->read_in) = span_;
    access.buffer->last_batch = last_;
  }
}

void Stream::Barrier(VkPipelineStageFlags before, VkPipelineStageFlags behind, VkAccessFlags access) {
  VkMemoryBarrier barrier{VK_STRUCTURE_TYPE_MEMORY_BARRIER};
  barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  barrier.dstAccessMask = access;
  vkCmdPipelineBarrier(commands(), before, behind, 0, 1, &barrier, 0, nullptr, 0, nullptr);
}

void Stream::Launched(const std::string& kernel) {
  Batch& batch = current();
  if (batch.first.empty()) batch.first = kernel;
  batch.last = kernel;
  ++batch.launches;
  ++Counters::Get().launches;
  if (WaitsBehindLaunches()) WaitForAll();
}

void Stream::Submit() {
  if (!recording_) return;
  Barrier(kWork, VK_PIPELINE_STAGE_HOST_BIT, VK_ACCESS_HOST_READ_BIT);
  recording_ = false;
  Batch& batch = current();
  VkSubmitInfo info{VK_STRUCTURE_TYPE_SUBMIT_INFO};
  info.commandBufferCount = 1;
  info.pCommandBuffers = &batch.commands;
  VkResult result = vkEndCommandBuffer(batch.commands);
  if (result == VK_SUCCESS) result = vkQueueSubmit(queue_, 1, &info, batch.done.get());
  batch.lost = result != VK_SUCCESS;
  lost_barriers_ |= batch.lost;
  CheckBatch(result, "submitting", batch);
  ++Counters::Get().submissions;
}

void Stream::Wait(uint64_t number) {
  if (untold_) std::rethrow_exception(std::exchange(untold_, nullptr));
  Await(number);
}

bool Stream::Settle(uint64_t number) noexcept {
  try {
    Await(number);
    return true;
  } catch (...) {  // a batch that is refused is not in use, but those before it may be
    untold_ = std::current_exception();
    return false;
  }
}

void Stream::Await(uint64_t number) {
  if (number <= done_) return;
  if (recording_ && number == last_) Submit();
  if (const uint64_t last = LastSubmitted(number); last > done_) {
    const Batch& batch = batches_[last % kBatches];
    const VkFence fence = batch.done.get();
    CheckBatch(vkWaitForFences(device_, 1, &fence, VK_TRUE, UINT64_MAX), "waiting for", batch);
  }
  done_ = number;
}

bool Stream::IsDone(uint64_t number) {
  if (number <= done_) return true;
  if (recording_ && number == last_) return false;
  if (const uint64_t last = LastSubmitted(number); last > done_) {
    const Batch& batch = batches_[last % kBatches];
    const VkResult result = vkGetFenceStatus(device_, batch.done.get());
    if (result == VK_NOT_READY) return false;
    CheckBatch(result, "asking for", batch);
  }
  done_ = number;
  return true;
}

// The last batch up to this one that the driver took; at most `done_` where there is none to wait for.
uint64_t Stream::LastSubmitted(uint64_t number) const {
  while (number > done_ && batches_[number % kBatches].lost) --number;
  return number;
}

void Stream::CheckBatch(VkResult result, const std::string& what, const Batch& batch) const {
  if (result == VK_SUCCESS) return;
  std::string commands = "copies", hint;
  if (batch.launches == 1) commands = "kernel " + batch.first;
  if (batch.launches > 1) {
    commands = std::to_string(batch.launches) + " launches, from kernel " + batch.first + " to " + batch.last;
    hint = "; BLOCKFFN_SYNC=1 waits behind every launch and names the one that fails";
  }
  Check(result, "Vulkan: " + what + " " + commands, hint);
}

}  // namespace blockffn::vulkan
