// Modules of kernels that were compiled to SPIR-V.
#pragma once

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/string.h>

#include "device.h"

namespace blockffn::vulkan {

// The device that TVM's host code chose last on this thread.
Device& CurrentDevice();

// A module from the bytes that TVM stores for kind "vulkan". Throws ValueError when they are damaged.
tvm::ffi::Module LoadModule(const tvm::ffi::Bytes& bytes);

}  // namespace blockffn::vulkan
