// The commands of a device, in order: recorded in batches that are submitted when they are full or somebody waits.
#pragma once

#include <array>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "buffer.h"

namespace blockffn::vulkan {

struct Access {
  Buffer* buffer;
  bool writes;
};

// One thread at a time.
class Stream {
 public:
  static constexpr size_t kStagingBytes = 4 << 20;  // of a batch

  struct Slice {
    VkBuffer buffer;
    VkDeviceSize offset;
    char* host;
  };

  // `make_staging` makes memory for both host and device.
  Stream(VkDevice device, uint32_t family, std::function<std::unique_ptr<Buffer>()> make_staging);

  // Makes room in one batch for one command: a launch with this many descriptors and bytes of staging memory (at most
  // kStagingBytes), or for a copy with 0 descriptors.
  void Reserve(uint32_t descriptors, size_t staging);
  // What is taken of that room, until the next Reserve.
  VkCommandBuffer commands() const { return current().commands; }
  VkDescriptorSet AllocateSet(VkDescriptorSetLayout layout, uint32_t descriptors);
  Slice Stage(size_t bytes);
  // Call before a command is recorded: it runs behind those that it depends on. Commands that only read the same
  // buffers may run at once.
  void Order(const std::vector<Access>& accesses);
  // Call behind a recorded launch; the name is for messages.
  void Launched(const std::string& kernel);

  // Submits what is recorded. Throws RuntimeError with the kernels of the batch when the driver refuses.
  void Submit();
  // Waits until a batch (a buffer's `last_batch`) is done, and those before. Throws RuntimeError, as Submit, also with
  // what Settle could not tell.
  void Wait(uint64_t batch);
  // Waits for a batch, whatever becomes of it: true when the device certainly does not use it any longer. The next who
  // waits is told what went wrong.
  bool Settle(uint64_t batch) noexcept;
  void WaitForAll() { Wait(last_); }
  bool IsDone(uint64_t batch);
  uint64_t last_batch() const { return last_; }

 private:
  struct Batch {
    VkCommandBuffer commands = VK_NULL_HANDLE;
    OwnedFence done;
    OwnedDescriptorPool descriptors;
    std::unique_ptr<Buffer> staging;
    uint64_t number = 0;
    bool lost = false;  // the driver refused it: it is done when those before are
    uint32_t recorded = 0, launches = 0, descriptors_used = 0;
    size_t staging_used = 0;
    std::string first, last;  // kernels
  };

  Batch& current() { return batches_[last_ % kBatches]; }
  const Batch& current() const { return batches_[last_ % kBatches]; }
  void Begin();
  void Await(uint64_t number);
  void Barrier(VkPipelineStageFlags before, VkPipelineStageFlags behind, VkAccessFlags access);
  uint64_t LastSubmitted(uint64_t number) const;
  void CheckBatch(VkResult result, const std::string& what, const Batch& batch) const;

  static constexpr uint32_t kBatches = 4, kCommands = 128, kDescriptors = 2048;  // of a batch

  const VkDevice device_;
  VkQueue queue_;
  std::function<std::unique_ptr<Buffer>()> make_staging_;
  OwnedCommandPool pool_;
  std::array<Batch, kBatches> batches_;
  bool recording_ = false;
  uint64_t last_ = 0;  // number of the batch that was begun last, counted from 1
  uint64_t done_ = 0;  // of the last batch known to be done
  uint64_t span_ = 1;  // between barriers, counted
  std::exception_ptr untold_;  // what went wrong where nobody could be told
  bool lost_barriers_ = false;  // with a batch: behind them, nothing is known of what waits for what
};

}  // namespace blockffn::vulkan
