// Vulkan's results by name, and the check that every call of the driver goes through.
#pragma once

#include <tvm/ffi/error.h>
#include <vulkan/vulkan.h>

#include <string>

namespace blockffn::vulkan {

inline const char* ResultName(VkResult result) {
  switch (result) {
#define CASE(name) \
  case name:       \
    return #name;
    CASE(VK_SUCCESS)
    CASE(VK_NOT_READY)
    CASE(VK_TIMEOUT)
    CASE(VK_INCOMPLETE)
    CASE(VK_ERROR_OUT_OF_HOST_MEMORY)
    CASE(VK_ERROR_OUT_OF_DEVICE_MEMORY)
    CASE(VK_ERROR_INITIALIZATION_FAILED)
    CASE(VK_ERROR_DEVICE_LOST)
    CASE(VK_ERROR_MEMORY_MAP_FAILED)
    CASE(VK_ERROR_LAYER_NOT_PRESENT)
    CASE(VK_ERROR_EXTENSION_NOT_PRESENT)
    CASE(VK_ERROR_FEATURE_NOT_PRESENT)
    CASE(VK_ERROR_INCOMPATIBLE_DRIVER)
    CASE(VK_ERROR_TOO_MANY_OBJECTS)
    CASE(VK_ERROR_FRAGMENTED_POOL)
    CASE(VK_ERROR_UNKNOWN)
    CASE(VK_ERROR_OUT_OF_POOL_MEMORY)
    CASE(VK_ERROR_FRAGMENTATION)
    CASE(VK_ERROR_INVALID_SHADER_NV)
#undef CASE
    default:
      return "unknown Vulkan result";
  }
}

// Throws RuntimeError "`what` failed: VK_... (code)`more`" unless `result` is VK_SUCCESS.
inline void Check(VkResult result, const std::string& what, const std::string& more = "") {
  if (result != VK_SUCCESS) {
    TVM_FFI_THROW(RuntimeError) << what << " failed: " << ResultName(result) << " (" << static_cast<int>(result) << ")"
                                << more;
  }
}

}  // namespace blockffn::vulkan
