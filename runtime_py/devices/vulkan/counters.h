// What happened since the process began.
#pragma once

#include <atomic>
#include <cstdint>

namespace blockffn::vulkan {

struct Counters {
  std::atomic<int64_t> launches{0};      // kernels recorded
  std::atomic<int64_t> submissions{0};   // batches of commands handed to drivers
  std::atomic<int64_t> barriers{0};      // between commands that depend on each other
  std::atomic<int64_t> compilations{0};  // pipelines made without the cache on disk

  static Counters& Get() {
    static Counters counters;
    return counters;
  }
};

}  // namespace blockffn::vulkan
