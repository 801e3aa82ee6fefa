// Runs the work-groups of a kernel on the processor: a fiber per work-item, one after the other, switched at barriers and
// at instructions that a warp carries out together.
//
// Between two barriers a group's work-items run once in rising and once in falling order, which makes results depend on
// missing barriers. Shared memory holds NaN and huge negative integers when a group begins. What a compiler checks for
// us at run time (indices of arrays, alignment of what pointers point to) ends the launch with a message, and so does
// an access to memory that is nobody's; the device (device.cc) surrounds what it allocates with such.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "vectors.h"

inline uint3 blockIdx, threadIdx, blockDim, gridDim;  // CUDA's names

namespace shim {

#ifdef SHIM_METAL
constexpr bool kMetal = true;
#else
constexpr bool kMetal = false;
#endif

enum class State { kRunning, kWaiting, kInWarp, kDone, kFailed };
constexpr size_t kWarp = 32;

struct Fiber {
  static constexpr size_t kStackBytes = 256 << 10;
  ucontext_t context;
  jmp_buf at;
  bool begun = false;
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  State state = State::kDone;
};

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* current = nullptr;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline std::string failure;

inline void Leave(State state) {
  current->state = state;
  if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}

inline void Loop() {
  for (;;) {
    body();
    Leave(State::kDone);
  }
}

// Waits for all work-items of the group.
inline void Barrier() { Leave(State::kWaiting); }

// Waits for all work-items of the warp.
inline void WarpBarrier() { Leave(State::kInWarp); }

// Ends the launch; what is on the fiber's stack is left there.
[[noreturn]] inline void Fail(const std::string& message) {
  failure = message;
  current->state = State::kFailed;
  _longjmp(scheduler, 1);
}

// While it lives, an access to memory that is nobody's ends the launch.
class FaultsFail {
 public:
  FaultsFail() {
    struct sigaction ours = {};
    ours.sa_handler = [](int) { Fail("an access outside of its arguments"); };
    ours.sa_flags = SA_NODEFER;  // it is left by a jump
    for (size_t i = 0; i < kCount; ++i) sigaction(kSignals[i], &ours, &before_[i]);
  }
  ~FaultsFail() {
    for (size_t i = 0; i < kCount; ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kSignals[] = {SIGSEGV, SIGBUS};
  static constexpr size_t kCount = 2;
  struct sigaction before_[kCount];
};

inline void Resume(Fiber& fiber) {
  current = &fiber;
  if (_setjmp(scheduler) != 0) return;
  fiber.state = State::kRunning;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = Fiber::kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, Loop, 0);
  setcontext(&fiber.context);
}

inline size_t Count(State state, size_t first, size_t end) {
  size_t count = 0;
  for (size_t item = first; item < end; ++item) count += fibers[item]->state == state;
  return count;
}

// Whether a group can go on; if not, the launch has failed.
inline bool AreAll(size_t count, size_t items, const char* where) {
  if (count != items) failure = std::to_string(count) + " of " + std::to_string(items) + " work-items wait at " + where;
  return count == items;
}

// One group: everything up to a barrier by all work-items, and again until they are done; between two barriers those
// that wait for their warp. False when one failed.
inline bool RunGroup(size_t items, bool backwards) {
  for (size_t item = 0; item < items; ++item) fibers[item]->state = State::kWaiting;
  for (State from = State::kWaiting;; backwards = !backwards) {
    for (size_t turn = 0; turn < items; ++turn) {
      const size_t item = backwards ? items - 1 - turn : turn;
      if (fibers[item]->state != from) continue;
      threadIdx.x = item % blockDim.x;
      threadIdx.y = item / blockDim.x % blockDim.y;
      threadIdx.z = item / blockDim.x / blockDim.y;
      Resume(*fibers[item]);
      if (fibers[item]->state == State::kFailed) return false;
    }
    from = Count(State::kInWarp, 0, items) > 0 ? State::kInWarp : State::kWaiting;
    if (from == State::kInWarp) {
      for (size_t warp = 0; warp < items; warp += kWarp) {
        const size_t size = std::min(kWarp, items - warp), count = Count(from, warp, warp + size);
        if (count > 0 && !AreAll(count, kWarp, "an instruction of their warp")) return false;
      }
    } else if (const size_t waiting = Count(from, 0, items); waiting == 0) {
      return true;
    } else if (!AreAll(waiting, items, "a barrier")) {
      return false;
    }
  }
}

// `extents`: groups (x, y, z), work-items of a group (x, y, z). Memory from `shared` to `end` is the groups' own. Null,
// or what went wrong.
template <class Kernel>
const char* Launch(const size_t* extents, char* shared, char* end, const Kernel& kernel) {
  gridDim = uint3(extents[0], extents[1], extents[2]);
  blockDim = uint3(extents[3], extents[4], extents[5]);
  const size_t items = extents[3] * extents[4] * extents[5];
  while (fibers.size() < items) fibers.push_back(std::make_unique<Fiber>());
  body = kernel;
  failure.clear();
  const FaultsFail faults_fail;
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        if (shared != nullptr) std::memset(shared, 0xFF, end - shared);
        if (RunGroup(items, blockIdx.x % 2 == 1)) continue;
        for (auto& fiber : fibers) fiber->begun = false;  // the next launch begins anew
        return failure.c_str();
      }
    }
  }
  return nullptr;
}

struct Place {  // of UndefinedBehaviorSanitizer's records, which begin with it
  const char* file;
  uint32_t line, column;
};

[[noreturn]] inline void FailAt(const void* place, const char* what) {
  const auto& found = *static_cast<const Place*>(place);
  Fail(std::string(what) + " in line " + std::to_string(found.line) + ", column " + std::to_string(found.column));
}

}  // namespace shim

extern "C" {
[[gnu::used]] inline void __ubsan_handle_out_of_bounds(void* place, void*) {
  shim::FailAt(place, "an index beyond its array");
}
[[gnu::used]] inline void __ubsan_handle_type_mismatch_v1(void* place, void*) {
  shim::FailAt(place, "a pointer that is null or not aligned");
}
}

namespace shim {

// The argument of a kernel of type T: a number or a pointer is the first bytes of its slot; a reference is to numbers in
// slots that follow each other; other than CUDA's, Metal's kernels take the two positions last.
template <class T, size_t kIndex, size_t kCount>
decltype(auto) Argument(const uint64_t* slots) {
  using Plain = std::remove_cv_t<std::remove_reference_t<T>>;
  const uint3& position = kIndex + 1 == kCount ? threadIdx : blockIdx;
  if constexpr (std::is_reference_v<T>) {
    return *reinterpret_cast<const Plain*>(slots + kIndex);
  } else if constexpr (kCount - kIndex <= 2 && kMetal) {
    if constexpr (std::is_same_v<T, uint3>) return uint3(position);
    else if constexpr (std::is_same_v<T, uint2>) return uint2(position.x, position.y);
    else return static_cast<unsigned>(position.x);
  } else {
    Plain value;
    std::memcpy(&value, slots + kIndex, sizeof value);
    return value;
  }
}

template <class... Types, size_t... kIndices>
void Call(void (*kernel)(Types...), const uint64_t* slots, std::index_sequence<kIndices...>) {
  kernel(Argument<Types, kIndices, sizeof...(Types)>(slots)...);
}

template <class... Types>
void Call(void (*kernel)(Types...), const uint64_t* slots) {
  Call(kernel, slots, std::index_sequence_for<Types...>());
}

}  // namespace shim
