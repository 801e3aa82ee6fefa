// Vulkan devices: each with a logical device, its memory and one stream of commands.
#pragma once

#include <tvm/ffi/any.h>
#include <tvm/runtime/device_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../shared/buffers.h"
#include "buffer.h"
#include "features.h"
#include "memory.h"
#include "stream.h"

namespace blockffn::vulkan {

class Device {
 public:
  using Pointer = void*;
  static constexpr DLDeviceType kType = kDLVulkan;

  // All devices: discrete GPUs, integrated ones, virtual ones, CPUs. They live as long as the process.
  static const std::vector<std::unique_ptr<Device>>& All();
  // Those that are left out since their driver failed when it was asked about them.
  struct Skipped {
    std::string name, reason;
  };
  static const std::vector<Skipped>& AllSkipped();
  // Throws when there is no device with this number.
  static Device& Get(int index);

  explicit Device(VkPhysicalDevice physical);

  const VkPhysicalDevice physical;
  VkPhysicalDeviceProperties properties;
  const Features features;

  tvm::ffi::Any Attribute(tvm::runtime::DeviceAttrKind kind) const;  // nullptr where Vulkan does not tell

  std::string name() const { return properties.deviceName; }
  const std::string& driver() const { return driver_; }  // name and version
  bool stages() const { return memory_.stages(); }
  size_t total_memory() const { return memory_.bytes(); }
  size_t largest_buffer() const { return largest_buffer_; }
  VkDevice handle();  // made at the first use

  // Throws when one buffer, or all together, would be larger than the device allows.
  Buffer* Allocate(size_t bytes);
  // Keeps the buffer for the next one of its size. What was recorded before still uses it, which does no harm, since
  // later commands come later in the stream; it is destroyed behind that.
  void Free(void* buffer);
  int64_t memory_in_use();
  int64_t memory_kept();  // of freed buffers

  // Behind everything recorded before. `Write` has read `from` when it returns, yet waits for staging memory at most.
  void Write(const void* from, void* to, size_t offset, size_t bytes);
  void Read(void* from, size_t offset, void* to, size_t bytes);
  void Copy(void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes);
  void Finish();

  // For launches: what follows needs the lock.
  std::unique_lock<std::mutex> Lock() { return std::unique_lock<std::mutex>(mutex_); }
  Buffer* Find(void* buffer) const;  // null when it is none of this device's
  Stream& stream();

 private:
  void Open();
  Buffer& Expect(void* buffer, size_t offset, size_t bytes) const;
  std::unique_ptr<Buffer> MakeBuffer(size_t bytes, VkBufferUsageFlags usage, MemoryUse use);

  std::string driver_;
  const Memory memory_;
  size_t largest_buffer_;
  std::once_flag opened_;
  VkDevice device_ = VK_NULL_HANDLE;
  std::mutex mutex_;  // for all below
  std::unique_ptr<Stream> stream_;
  Buffers<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace blockffn::vulkan
