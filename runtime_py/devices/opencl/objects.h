// Owners of the driver's objects: each is released once, whatever is thrown in between.
#pragma once

#include <CL/cl.h>

#include <atomic>
#include <cstdint>
#include <utility>

namespace blockffn::opencl {

inline void Release(cl_context object) { clReleaseContext(object); }
inline void Release(cl_command_queue object) { clReleaseCommandQueue(object); }
inline void Release(cl_mem object) { clReleaseMemObject(object); }
inline void Release(cl_program object) { clReleaseProgram(object); }
inline void Release(cl_kernel object) { clReleaseKernel(object); }
inline void Release(cl_event object) { clReleaseEvent(object); }

inline std::atomic<int64_t> live_objects{0};  // that have an owner now

template <class Handle>
class Object {
 public:
  Object() = default;
  // Takes over a new object, or null where the driver made none.
  explicit Object(Handle handle) : handle_(handle) {
    if (handle_ != nullptr) ++live_objects;
  }
  Object(Object&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Object& operator=(Object&& other) noexcept {
    Object moved(std::move(other));
    std::swap(handle_, moved.handle_);
    return *this;
  }
  ~Object() {
    if (handle_ == nullptr) return;
    Release(handle_);
    --live_objects;
  }

  Handle get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  Handle handle_ = nullptr;
};

}  // namespace blockffn::opencl
