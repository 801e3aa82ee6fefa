#include "kernel.h"

#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "counters.h"

namespace blockffn::vulkan {
namespace {

namespace ffi = tvm::ffi;

// What a stored pipeline cache begins with, for it to be of this device and driver. Drivers check that as well, but
// not all of them well.
bool IsFor(const VkPhysicalDeviceProperties& device, const ffi::Bytes& cache) {
  VkPipelineCacheHeaderVersionOne header;
  if (cache.size() < sizeof header) return false;
  std::memcpy(&header, cache.data(), sizeof header);
  return header.headerVersion == VK_PIPELINE_CACHE_HEADER_VERSION_ONE && header.vendorID == device.vendorID &&
         header.deviceID == device.deviceID &&
         std::memcmp(header.pipelineCacheUUID, device.pipelineCacheUUID, VK_UUID_SIZE) == 0;
}

// What a compiled kernel depends on besides the kernel.
std::string KeyOf(const VkPhysicalDeviceProperties& device) {
  std::string key(device.deviceName);
  for (uint32_t number : {device.apiVersion, device.driverVersion, device.vendorID, device.deviceID}) {
    key += "\n" + std::to_string(number);
  }
  return key + "\n" + std::string(reinterpret_cast<const char*>(device.pipelineCacheUUID), VK_UUID_SIZE) + "\n";
}

}  // namespace

Kernel::Kernel(const KernelInfo& info, uint32_t flags, std::vector<uint32_t> words)
    : shader_(info.name, std::move(words)),
      arguments_(info.arguments),
      in_uniform_buffer_((flags & 1) != 0),
      read_launch_("Vulkan", info) {
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (arguments_[i].code != kDLOpaqueHandle) continue;
    if (i != buffers_++) TVM_FFI_THROW(ValueError) << "Vulkan: kernel " << info.name << " takes a buffer behind a number";
  }
  if (shader_.bindings() > buffers_ + in_uniform_buffer_) {
    TVM_FFI_THROW(ValueError) << "Vulkan: kernel " << info.name << " takes " << buffers_ << " buffers"
                              << (in_uniform_buffer_ ? " and a uniform one" : "") << ", its shader uses binding "
                              << shader_.bindings() - 1;
  }
  for (const std::string& tag : info.tags) {
    if (tag.find("dyn_shared") != std::string::npos) {
      TVM_FFI_THROW(ValueError) << "Vulkan: kernel " << info.name << " asks for memory at its launch (" << tag
                                << "), which Vulkan does not have";
    }
  }
}

Kernel::~Kernel() {
  for (auto& [device, pipeline] : pipelines_) {
    const auto lock = device->Lock();
    if (!device->stream().Settle(pipeline.last_batch)) new Pipeline(std::move(pipeline));  // may be in use: better lost
  }
}

void Kernel::CheckDevice(const Device& device) const {
  for (uint32_t number : shader_.capabilities()) {
    const Capability* capability = FindCapability(number);
    if (capability != nullptr && capability->in(device.features)) continue;
    TVM_FFI_THROW(RuntimeError) << "Vulkan: kernel " << shader_.name << " needs "
                                << (capability == nullptr ? "SPIR-V capability " + std::to_string(number)
                                                          : std::string(capability->name))
                                << ", which "
                                << (capability == nullptr ? "this runtime does not know" : device.name() + " lacks");
  }
  const VkPhysicalDeviceLimits& limits = device.properties.limits;
  const auto check = [&](const char* what, uint64_t needed, uint64_t limit) {
    if (needed <= limit) return;
    TVM_FFI_THROW(RuntimeError) << "Vulkan: kernel " << shader_.name << " needs " << needed << " " << what << ", "
                                << device.name() << " has " << limit;
  };
  const auto& group = shader_.group();
  check("work-items in a group", uint64_t{group[0]} * group[1] * group[2], limits.maxComputeWorkGroupInvocations);
  for (size_t axis = 0; axis < group.size(); ++axis) {
    check("work-items along an axis of a group", group[axis], limits.maxComputeWorkGroupSize[axis]);
  }
  check("bytes of memory that a group shares", shader_.local_bytes(), limits.maxComputeSharedMemorySize);
  check("storage buffers", buffers_, limits.maxPerStageDescriptorStorageBuffers);
  check(in_uniform_buffer_ ? "bytes of a uniform buffer" : "bytes of push constants", number_bytes(),
        in_uniform_buffer_ ? limits.maxUniformBufferRange : limits.maxPushConstantsSize);
}

void Kernel::Launch(Device& device, const ffi::PackedArgs& values) {
  const LaunchExtents launch = read_launch_(values);
  if (launch[0] == 0 || launch[1] == 0 || launch[2] == 0) return;  // their product may wrap
  const auto& limits = device.properties.limits;
  for (size_t axis = 0; axis < 3; ++axis) {
    if (launch[3 + axis] != shader_.group()[axis]) {
      TVM_FFI_THROW(ValueError) << What("launching") << " in work-groups of " << LaunchReader::Triple(launch, 3)
                                << " work-items, its shader was compiled for others";
    }
    if (launch[axis] > limits.maxComputeWorkGroupCount[axis]) {
      TVM_FFI_THROW(RuntimeError) << What("launching") << " in " << LaunchReader::Triple(launch, 0)
                                  << " work-groups, " << device.name() << " runs up to "
                                  << limits.maxComputeWorkGroupCount[axis] << " along axis " << axis;
    }
  }
  Pipeline& pipeline = On(device);

  std::vector<uint64_t> numbers;
  std::vector<Access> accesses;
  std::vector<VkDescriptorBufferInfo> infos;
  const auto lock = device.Lock();
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (i < buffers_) {
      Buffer* buffer = device.Find(values[i].cast<void*>());
      if (buffer == nullptr) {
        TVM_FFI_THROW(ValueError) << What("argument " + std::to_string(i) + " of") << " is no buffer of "
                                  << device.name();
      }
      accesses.push_back({buffer, shader_.Writes(i)});
      infos.push_back({buffer->buffer.get(), 0, VK_WHOLE_SIZE});
    } else if (const auto bits = read_launch_.NumberBits(i, values[i])) {
      numbers.push_back(*bits);
    } else {
      TVM_FFI_THROW(ValueError) << What("argument " + std::to_string(i) + " of") << " has a type that is not known here";
    }
  }

  Stream& stream = device.stream();
  stream.Reserve(infos.size() + 1, in_uniform_buffer_ ? number_bytes() : 0);
  if (in_uniform_buffer_) {
    const Stream::Slice slice = stream.Stage(number_bytes());
    std::memcpy(slice.host, numbers.data(), number_bytes());
    infos.push_back({slice.buffer, slice.offset, number_bytes()});
  }
  const VkDescriptorSet set = stream.AllocateSet(pipeline.set_layout.get(), infos.size());
  std::vector<VkWriteDescriptorSet> writes;
  for (uint32_t i = 0; i < infos.size(); ++i) {
    VkWriteDescriptorSet write{VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET};
    write.dstSet = set;
    write.dstBinding = i;
    write.descriptorCount = 1;
    write.descriptorType = i < buffers_ ? VK_DESCRIPTOR_TYPE_STORAGE_BUFFER : VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER;
    write.pBufferInfo = &infos[i];
    writes.push_back(write);
  }
  vkUpdateDescriptorSets(device.handle(), writes.size(), writes.data(), 0, nullptr);

  stream.Order(accesses);
  VkCommandBuffer commands = stream.commands();
  vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline.pipeline.get());
  vkCmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline.layout.get(), 0, 1, &set, 0, nullptr);
  if (!in_uniform_buffer_ && !numbers.empty()) {
    vkCmdPushConstants(commands, pipeline.layout.get(), VK_SHADER_STAGE_COMPUTE_BIT, 0, number_bytes(), numbers.data());
  }
  vkCmdDispatch(commands, launch[0], launch[1], launch[2]);
  pipeline.last_batch = stream.last_batch();
  stream.Launched(shader_.name);
}

// Not under the device's lock: the cache on disk is Python's, whose lock others hold while they free buffers.
Kernel::Pipeline& Kernel::On(Device& device) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = pipelines_.find(&device);
  if (found != pipelines_.end()) return found->second;
  CheckDevice(device);
  return pipelines_.emplace(&device, MakePipeline(device)).first->second;
}

Kernel::Pipeline Kernel::MakePipeline(Device& device) const {
  std::vector<VkDescriptorSetLayoutBinding> bindings;
  for (uint32_t i = 0; i < buffers_; ++i) {
    bindings.push_back({i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, nullptr});
  }
  if (in_uniform_buffer_) {
    bindings.push_back({buffers_, VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, nullptr});
  }
  VkDescriptorSetLayoutCreateInfo set{VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO};
  set.bindingCount = bindings.size();
  set.pBindings = bindings.data();
  auto set_layout = Make<OwnedSetLayout>(vkCreateDescriptorSetLayout, device.handle(), set, What("describing"));

  const VkDescriptorSetLayout set_layouts[] = {set_layout.get()};
  const VkPushConstantRange constants{VK_SHADER_STAGE_COMPUTE_BIT, 0, static_cast<uint32_t>(number_bytes())};
  VkPipelineLayoutCreateInfo all{VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO};
  all.setLayoutCount = 1;
  all.pSetLayouts = set_layouts;
  if (!in_uniform_buffer_ && constants.size > 0) {
    all.pushConstantRangeCount = 1;
    all.pPushConstantRanges = &constants;
  }
  auto layout = Make<OwnedPipelineLayout>(vkCreatePipelineLayout, device.handle(), all, What("describing"));
  auto pipeline = Compile(device, layout.get());
  return {std::move(set_layout), std::move(layout), std::move(pipeline)};
}

OwnedPipeline Kernel::Compile(Device& device, VkPipelineLayout layout) const {
  const VkDevice handle = device.handle();
  const std::string what = What("compiling") + " for " + device.name();
  VkShaderModuleCreateInfo code{VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO};
  code.codeSize = 4 * shader_.words.size();
  code.pCode = shader_.words.data();
  const auto module = Make<OwnedShader>(vkCreateShaderModule, handle, code, what);

  const std::string key = KeyOf(device.properties) + shader_.name + "\n" +
                          std::string(reinterpret_cast<const char*>(code.pCode), code.codeSize);
  const auto load = ffi::Function::GetGlobal("blockffn.vulkan.load_binary");
  const auto store = ffi::Function::GetGlobal("blockffn.vulkan.store_binary");
  ffi::Optional<ffi::Bytes> stored;
  if (load) stored = (*load)(ffi::Bytes(key)).cast<ffi::Optional<ffi::Bytes>>();
  const bool usable = stored && IsFor(device.properties, stored.value());
  VkPipelineCacheCreateInfo cached{VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
  if (usable) {
    cached.initialDataSize = stored.value().size();
    cached.pInitialData = stored.value().data();  // kept by `stored`
  }
  const auto cache = Make<OwnedPipelineCache>(vkCreatePipelineCache, handle, cached, what);

  VkComputePipelineCreateInfo info{VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO};
  info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  info.stage.module = module.get();
  info.stage.pName = shader_.name.c_str();
  info.layout = layout;
  VkPipeline pipeline = VK_NULL_HANDLE;
  Check(vkCreateComputePipelines(handle, cache.get(), 1, &info, nullptr, &pipeline), what);
  OwnedPipeline made(handle, pipeline);
  if (!usable) {
    ++Counters::Get().compilations;
    size_t size = 0;
    if (store && vkGetPipelineCacheData(handle, cache.get(), &size, nullptr) == VK_SUCCESS) {
      std::string data(size, '\0');
      if (vkGetPipelineCacheData(handle, cache.get(), &size, data.data()) == VK_SUCCESS) {
        (*store)(ffi::Bytes(key), ffi::Bytes(std::move(data)));
      }
    }
  }
  return made;
}

}  // namespace blockffn::vulkan
