// OpenCL devices of all platforms: each with a context and one in-order queue of its own.
#pragma once

#include <CL/cl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <queue>
#include <string>
#include <vector>

#include "../shared/spare_buffers.h"
#include "errors.h"

namespace blockffn::opencl {

class Device {
 public:
  // All devices: GPUs, then accelerators, then CPUs. They live as long as the process.
  static const std::vector<std::unique_ptr<Device>>& All();
  // Throws when there is no device with this number.
  static Device& Get(int index);

  Device(cl_platform_id platform, cl_device_id id, cl_device_type type) : platform(platform), id(id), type(type) {}

  const cl_platform_id platform;
  const cl_device_id id;
  const cl_device_type type;

  cl_context context();  // made at the first use, with the queue
  cl_command_queue queue();

  template <class T>
  T Info(cl_device_info what) const {  // of fixed size
    T value{};
    Check(clGetDeviceInfo(id, what, sizeof value, &value, nullptr), "OpenCL: clGetDeviceInfo");
    return value;
  }
  std::string Text(cl_device_info what) const;
  std::string PlatformText(cl_platform_info what) const;

  // Throws when one buffer, or all together, would be larger than the device allows.
  cl_mem Allocate(size_t bytes);
  // Keeps the buffer for the next one of its size: every pass asks for the same. What was enqueued before still uses
  // it, which does no harm, since later commands come later in the queue.
  void Free(cl_mem buffer);
  int64_t memory_in_use();

  // Behind everything enqueued before. `Write` has read `from` when it returns, yet waits only for large pieces.
  void Write(const void* from, cl_mem to, size_t offset, size_t bytes);
  void Read(cl_mem from, size_t offset, void* to, size_t bytes);
  void Copy(cl_mem from, size_t from_offset, cl_mem to, size_t to_offset, size_t bytes);
  void Finish();

 private:
  struct Staged {
    cl_event done;
    std::unique_ptr<char[]> bytes;
  };
  void Open();
  void ReleaseWritten();

  std::once_flag opened_;
  cl_context context_ = nullptr;
  cl_command_queue queue_ = nullptr;
  std::mutex memory_mutex_;
  size_t in_use_ = 0;
  SpareBuffers<cl_mem> spare_{clReleaseMemObject};  // the driver waits for commands that use them
  std::mutex staged_mutex_;
  std::queue<Staged> staged_;
};

}  // namespace blockffn::opencl
