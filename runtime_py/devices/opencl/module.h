// Modules of kernels that TVM compiled to OpenCL C.
#pragma once

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/string.h>

#include <atomic>
#include <cstdint>

#include "device.h"

namespace blockffn::opencl {

struct Counters {
  std::atomic<int64_t> launches{0};      // kernels enqueued since the process began
  std::atomic<int64_t> compilations{0};  // programs compiled from source, not taken from the cache on disk

  static Counters& Get() {
    static Counters counters;
    return counters;
  }
};

// The device that TVM's host code chose last on this thread.
Device& CurrentDevice();

// A module from the bytes that TVM stores for kind "opencl". Throws ValueError when they are damaged.
tvm::ffi::Module LoadModule(const tvm::ffi::Bytes& bytes);

}  // namespace blockffn::opencl
