// Memory of a device, and who uses it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "owned.h"

namespace blockffn::vulkan {

struct Buffer {
  size_t bytes;
  OwnedMemory memory;
  OwnedBuffer buffer;
  char* host;   // where the host sees it; null for memory that only the device sees
  bool cached;  // the host sees it through its caches

  // Kept by Stream.
  uint64_t last_batch = 0;             // the last batch of commands that uses it
  uint64_t read_in = 0, written_in = 0;  // the last spans between barriers in which commands do so
};

}  // namespace blockffn::vulkan
