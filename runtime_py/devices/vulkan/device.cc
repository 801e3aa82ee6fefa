#include "device.h"

#include <algorithm>
#include <cstring>

#include "instance.h"

namespace blockffn::vulkan {
namespace {

constexpr VkBufferUsageFlags kCopied = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
constexpr size_t kRounding = 16;  // of buffers' sizes: kernels may see them as arrays of vectors of up to 16 bytes

struct Found {
  std::vector<std::unique_ptr<Device>> devices;
  std::vector<Device::Skipped> skipped;
};

// Before any of Vulkan 1.1's functions is called for it. Throws RuntimeError with what it lacks.
void CheckUsable(VkPhysicalDevice device, const VkPhysicalDeviceProperties& properties) {
  if (properties.apiVersion < VK_API_VERSION_1_1) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: it has version " << VersionText(properties.apiVersion)
                                << ", 1.1 is needed; a newer driver may have it";
  }
  if (ComputeFamily(device) < 0) TVM_FFI_THROW(RuntimeError) << "Vulkan: none of its queues runs kernels";
}

// A device that cannot be used or described is skipped: one broken driver hides no other's.
Found* FindDevices() {
  auto found = std::make_unique<Found>();
  for (VkPhysicalDevice device : Instance::Get().PhysicalDevices()) {
    VkPhysicalDeviceProperties properties;
    vkGetPhysicalDeviceProperties(device, &properties);
    try {
      CheckUsable(device, properties);
      found->devices.push_back(std::make_unique<Device>(device));
    } catch (const tvm::ffi::Error& error) {
      found->skipped.push_back({properties.deviceName, error.message()});
    }
  }
  return found.release();
}

const Found& AllFound() {
  static const Found* found = FindDevices();
  return *found;
}

}  // namespace

const std::vector<std::unique_ptr<Device>>& Device::All() { return AllFound().devices; }

const std::vector<Device::Skipped>& Device::AllSkipped() { return AllFound().skipped; }

Device& Device::Get(int index) {
  if (index < 0 || static_cast<size_t>(index) >= All().size()) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: there is no device " << index << ", found " << All().size();
  }
  return *All()[index];
}

Device::Device(VkPhysicalDevice physical)
    : physical(physical), features(physical), memory_(physical), buffers_([this](std::unique_ptr<Buffer> buffer) {
        // Nothing may be destroyed that a batch may still use: better lost than that.
        if (!stream_->Settle(buffer->last_batch)) buffer.release();
      }) {
  VkPhysicalDeviceMaintenance3Properties sizes{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
  VkPhysicalDeviceDriverProperties driver{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
  VkPhysicalDeviceProperties2 all{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, &sizes, {}};
  if (HasExtension(physical, VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME)) sizes.pNext = &driver;
  vkGetPhysicalDeviceProperties2(physical, &all);
  properties = all.properties;
  driver_ = sizes.pNext == nullptr ? std::to_string(properties.driverVersion)
                                   : std::string(driver.driverName) + " " + driver.driverInfo;
  const size_t limit = std::min<size_t>(properties.limits.maxStorageBufferRange, sizes.maxMemoryAllocationSize);
  largest_buffer_ = limit / kRounding * kRounding;
}

tvm::ffi::Any Device::Attribute(tvm::runtime::DeviceAttrKind kind) const {
  using Kind = tvm::runtime::DeviceAttrKind;
  switch (kind) {
    case Kind::kMaxThreadsPerBlock:
      return static_cast<int64_t>(properties.limits.maxComputeWorkGroupInvocations);
    case Kind::kMaxSharedMemoryPerBlock:
      return static_cast<int64_t>(properties.limits.maxComputeSharedMemorySize);
    case Kind::kDeviceName:
      return tvm::ffi::String(name());
    case Kind::kDriverVersion:
      return tvm::ffi::String(driver_);
    case Kind::kTotalGlobalMemory:
      return static_cast<int64_t>(total_memory());
    default:
      return nullptr;
  }
}

void Device::Open() {
  std::call_once(opened_, [this] {
    const float priority = 1;
    const auto family = static_cast<uint32_t>(ComputeFamily(physical));
    VkDeviceQueueCreateInfo queue{VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO};
    queue.queueFamilyIndex = family;
    queue.queueCount = 1;
    queue.pQueuePriorities = &priority;
    VkDeviceCreateInfo info{VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, features.chain()};
    info.queueCreateInfoCount = 1;
    info.pQueueCreateInfos = &queue;
    info.enabledExtensionCount = features.extensions().size();
    info.ppEnabledExtensionNames = features.extensions().data();
    VkDevice device;
    Check(vkCreateDevice(physical, &info, nullptr, &device), "Vulkan: vkCreateDevice for " + name());
    try {
      stream_ = std::make_unique<Stream>(device, family, [this] {
        return MakeBuffer(Stream::kStagingBytes, kCopied | VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT, MemoryUse::kStaging);
      });
    } catch (...) {
      vkDestroyDevice(device, nullptr);
      throw;
    }
    device_ = device;
  });
}

VkDevice Device::handle() {
  Open();
  return device_;
}

Stream& Device::stream() {
  Open();
  return *stream_;
}

std::unique_ptr<Buffer> Device::MakeBuffer(size_t bytes, VkBufferUsageFlags usage, MemoryUse use) {
  const std::string what = "Vulkan: making a buffer of " + std::to_string(bytes) + " bytes";
  VkBufferCreateInfo info{VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO};
  info.size = (bytes + kRounding - 1) / kRounding * kRounding;
  info.usage = usage;
  OwnedBuffer buffer = Make<OwnedBuffer>(vkCreateBuffer, device_, info, what);
  VkMemoryRequirements needs;
  vkGetBufferMemoryRequirements(device_, buffer.get(), &needs);
  const auto type = memory_.Choose(use, needs.memoryTypeBits);
  if (!type) {
    TVM_FFI_THROW(RuntimeError) << what << " failed: " << name() << " has no memory for "
                                << (use == MemoryUse::kStaging ? "copies" : "kernels") << " among types "
                                << needs.memoryTypeBits << " (a bit each)";
  }
  VkMemoryAllocateInfo allocation{VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO};
  allocation.allocationSize = needs.size;
  allocation.memoryTypeIndex = *type;
  OwnedMemory memory = Make<OwnedMemory>(vkAllocateMemory, device_, allocation, what);
  Check(vkBindBufferMemory(device_, buffer.get(), memory.get(), 0), what);
  void* host = nullptr;
  if (memory_.Maps(use, *type)) Check(vkMapMemory(device_, memory.get(), 0, VK_WHOLE_SIZE, 0, &host), what);
  return std::unique_ptr<Buffer>(new Buffer{bytes, std::move(memory), std::move(buffer), static_cast<char*>(host),
                                            host != nullptr && memory_.Caches(*type)});
}

Buffer* Device::Allocate(size_t bytes) {
  Open();
  const auto lock = Lock();
  return buffers_.Allocate(bytes, {"Vulkan", name(), largest_buffer_, total_memory()}, [this](size_t size) {
    return MakeBuffer(size, kCopied | VK_BUFFER_USAGE_STORAGE_BUFFER_BIT, MemoryUse::kKernels);
  });
}

void Device::Free(void* buffer) {
  const auto lock = Lock();
  buffers_.Free(buffer);
}

int64_t Device::memory_in_use() {
  const auto lock = Lock();
  return buffers_.in_use();
}

int64_t Device::memory_kept() {
  const auto lock = Lock();
  return buffers_.kept();
}

Buffer* Device::Find(void* buffer) const {
  const auto* owner = buffers_.Find(buffer);
  return owner == nullptr ? nullptr : owner->get();
}

// The buffer that a copy of `bytes` at `offset` is from or to.
Buffer& Device::Expect(void* pointer, size_t offset, size_t bytes) const {
  Buffer* buffer = Find(pointer);
  if (buffer == nullptr) TVM_FFI_THROW(ValueError) << "Vulkan: copying what is no buffer of " << name();
  if (offset > buffer->bytes || bytes > buffer->bytes - offset) {
    TVM_FFI_THROW(ValueError) << "Vulkan: copying " << bytes << " bytes at " << offset << " of a buffer of "
                              << buffer->bytes;
  }
  return *buffer;
}

void Device::Write(const void* from, void* to, size_t offset, size_t bytes) {
  const auto lock = Lock();
  Buffer& buffer = Expect(to, offset, bytes);
  if (buffer.host != nullptr && stream_->IsDone(buffer.last_batch)) {
    std::memcpy(buffer.host + offset, from, bytes);
    return;
  }
  const char* source = static_cast<const char*>(from);
  for (size_t at = 0; at < bytes; at += Stream::kStagingBytes) {
    const size_t piece = std::min(bytes - at, Stream::kStagingBytes);
    stream_->Reserve(0, piece);
    const Stream::Slice slice = stream_->Stage(piece);
    std::memcpy(slice.host, source + at, piece);
    stream_->Order({{&buffer, true}});
    const VkBufferCopy copy{slice.offset, offset + at, piece};
    vkCmdCopyBuffer(stream_->commands(), slice.buffer, buffer.buffer.get(), 1, &copy);
  }
}

void Device::Read(void* from, size_t offset, void* to, size_t bytes) {
  const auto lock = Lock();
  Buffer& buffer = Expect(from, offset, bytes);
  if (buffer.cached) {
    stream_->Wait(buffer.last_batch);
    std::memcpy(to, buffer.host + offset, bytes);
    return;
  }
  for (size_t at = 0; at < bytes; at += Stream::kStagingBytes) {
    const size_t piece = std::min(bytes - at, Stream::kStagingBytes);
    stream_->Reserve(0, piece);
    const Stream::Slice slice = stream_->Stage(piece);
    stream_->Order({{&buffer, false}});
    const VkBufferCopy copy{offset + at, slice.offset, piece};
    vkCmdCopyBuffer(stream_->commands(), buffer.buffer.get(), slice.buffer, 1, &copy);
    stream_->WaitForAll();
    std::memcpy(static_cast<char*>(to) + at, slice.host, piece);
  }
}

void Device::Copy(void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes) {
  const auto lock = Lock();
  Buffer &source = Expect(from, from_offset, bytes), &target = Expect(to, to_offset, bytes);
  stream_->Reserve(0, 0);
  stream_->Order({{&source, false}, {&target, true}});
  const VkBufferCopy copy{from_offset, to_offset, bytes};
  vkCmdCopyBuffer(stream_->commands(), source.buffer.get(), target.buffer.get(), 1, &copy);
}

void Device::Finish() {
  Open();
  const auto lock = Lock();
  stream_->WaitForAll();
}

}  // namespace blockffn::vulkan
