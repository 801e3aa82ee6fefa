// OpenCL devices of all platforms: each with a context and one in-order queue of its own.
#pragma once

#include <CL/cl.h>

#include <tvm/ffi/any.h>
#include <tvm/runtime/device_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../shared/buffers.h"
#include "errors.h"
#include "objects.h"

namespace blockffn::opencl {

class Device {
 public:
  using Pointer = cl_mem;
  static constexpr DLDeviceType kType = kDLOpenCL;

  // All devices: GPUs, then accelerators, then CPUs. They live as long as the process.
  static const std::vector<std::unique_ptr<Device>>& All();
  // Throws when there is no device with this number.
  static Device& Get(int index);

  Device(cl_platform_id platform, cl_device_id id, cl_device_type type) : platform(platform), id(id), type(type) {}

  const cl_platform_id platform;
  const cl_device_id id;
  const cl_device_type type;

  tvm::ffi::Any Attribute(tvm::runtime::DeviceAttrKind kind) const;  // nullptr where OpenCL does not tell

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

  // Throws when one buffer, or all together, would be larger than the device allows. The device owns the buffer.
  cl_mem Allocate(size_t bytes);
  // Keeps the buffer for the next one of its size: every pass asks for the same. What was enqueued before still uses
  // it, which does no harm, since later commands come later in the queue.
  void Free(cl_mem buffer);
  int64_t memory_in_use();
  int64_t memory_kept();  // of freed buffers

  // Behind everything enqueued before. `Write` has read `from` when it returns, yet waits only for large pieces.
  void Write(const void* from, cl_mem to, size_t offset, size_t bytes);
  void Read(cl_mem from, size_t offset, void* to, size_t bytes);
  void Copy(cl_mem from, size_t from_offset, cl_mem to, size_t to_offset, size_t bytes);
  void Finish();

  // A kernel was enqueued: an error that shows when the host waits for the queue names the last ones.
  void Launched(const std::string& kernel);

 private:
  struct Staged {
    std::unique_ptr<char[]> bytes;
    Object<cl_event> done;
  };
  void Open();
  void CheckWaited(cl_int code, const std::string& what);
  void ReleaseWritten();

  std::once_flag opened_;
  Object<cl_context> context_;
  Object<cl_command_queue> queue_;
  std::mutex memory_mutex_;
  Buffers<Object<cl_mem>> buffers_{[](Object<cl_mem>) {}};  // the driver waits for commands that use them
  std::mutex staged_mutex_;
  std::deque<Staged> staged_;
  std::mutex launched_mutex_;
  std::array<std::string, 8> launched_;  // kernels enqueued since the host last waited, the last ones
  size_t launches_ = 0;  // how many
};

}  // namespace blockffn::opencl
