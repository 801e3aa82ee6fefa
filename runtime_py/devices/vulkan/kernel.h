// One kernel: how it is called, its shader, and its pipeline on every device that it ran on.
#pragma once

#include <tvm/ffi/function.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "../shared/launch.h"
#include "device.h"
#include "shader.h"

namespace blockffn::vulkan {

class Kernel {
 public:
  // `flags`: of TVM's shaders; bit 0: numbers are in a uniform buffer behind the last binding, else they are push
  // constants. Throws ValueError for a shader that is damaged.
  Kernel(const KernelInfo& info, uint32_t flags, std::vector<uint32_t> words);
  Kernel(const Kernel&) = delete;
  ~Kernel();

  // Records one launch on a device. `values`: the arguments, then one number per launch tag.
  void Launch(Device& device, const tvm::ffi::PackedArgs& values);
  // Throws RuntimeError naming kernel and limit when a device lacks what the kernel needs.
  void CheckDevice(const Device& device) const;

 private:
  struct Pipeline {
    OwnedSetLayout set_layout;
    OwnedPipelineLayout layout;
    OwnedPipeline pipeline;
    uint64_t last_batch = 0;  // that uses it
  };

  size_t number_bytes() const { return 8 * (arguments_.size() - buffers_); }
  Pipeline& On(Device& device);
  Pipeline MakePipeline(Device& device) const;
  OwnedPipeline Compile(Device& device, VkPipelineLayout layout) const;
  std::string What(const std::string& doing) const { return "Vulkan: " + doing + " kernel " + shader_.name; }

  const Shader shader_;
  const std::vector<DLDataType> arguments_;
  const bool in_uniform_buffer_;
  const LaunchReader read_launch_;
  uint32_t buffers_ = 0;  // among the arguments
  std::mutex mutex_;      // for pipelines_
  std::map<Device*, Pipeline> pipelines_;
};

}  // namespace blockffn::vulkan
