// Extents of a launch, as TVM's host code hands them to a kernel behind its arguments.
#pragma once

#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "module_bytes.h"

namespace blockffn {

// Grid in work-groups (x, y, z), work-group in work-items (x, y, z), bytes of local memory.
using LaunchExtents = std::array<size_t, 7>;
constexpr size_t kDynamicMemory = 6;

// The bits of a number as a kernel takes it, in its first bytes; none for other types than integers, float and double.
inline std::optional<uint64_t> ScalarBits(DLDataType type, const tvm::ffi::AnyView& value) {
  uint64_t bits = 0;
  if (type.code == kDLFloat && type.bits == 64) {
    const auto number = value.cast<double>();
    std::memcpy(&bits, &number, sizeof number);
  } else if (type.code == kDLFloat && type.bits == 32) {
    const auto number = static_cast<float>(value.cast<double>());
    std::memcpy(&bits, &number, sizeof number);
  } else if (type.code == kDLInt || type.code == kDLUInt || type.code == kDLBool) {
    bits = static_cast<uint64_t>(value.cast<int64_t>());
  } else {
    return std::nullopt;
  }
  return bits;
}

class LaunchReader {
 public:
  // `kind` begins the messages. Throws ValueError for a tag that is none.
  LaunchReader(const char* kind, const KernelInfo& info)
      : kind_(kind), name_(info.name), arguments_(info.arguments.size()) {
    for (const std::string& tag : info.tags) places_.push_back(PlaceOf(tag));
  }

  // The extents among the values that a kernel was called with. Throws TypeError when these are too few or many.
  LaunchExtents operator()(const tvm::ffi::PackedArgs& values) const {
    if (static_cast<size_t>(values.size()) != arguments_ + places_.size()) {
      TVM_FFI_THROW(TypeError) << kind_ << ": kernel " << name_ << " takes " << arguments_ + places_.size()
                               << " values, found " << values.size();
    }
    LaunchExtents launch = {1, 1, 1, 1, 1, 1, 0};
    for (size_t i = 0; i < places_.size(); ++i) launch[places_[i]] = values[arguments_ + i].cast<int64_t>();
    return launch;
  }

  // "2 x 3 x 4": three extents from the one at `first` on.
  static std::string Triple(const LaunchExtents& launch, size_t first) {
    return std::to_string(launch[first]) + " x " + std::to_string(launch[first + 1]) + " x " +
           std::to_string(launch[first + 2]);
  }

 private:
  size_t PlaceOf(const std::string& tag) const {
    const std::string prefixes[] = {"blockIdx.", "threadIdx."};
    for (size_t kind = 0; kind < 2; ++kind) {
      const std::string& prefix = prefixes[kind];
      if (tag.size() == prefix.size() + 1 && tag.compare(0, prefix.size(), prefix) == 0 && tag.back() >= 'x' &&
          tag.back() <= 'z') {
        return 3 * kind + (tag.back() - 'x');
      }
    }
    if (tag.find("use_dyn_shared_memory") != std::string::npos) return kDynamicMemory;
    TVM_FFI_THROW(ValueError) << kind_ << ": unknown launch tag " << tag;
  }

  const char* kind_;
  const std::string name_;
  const size_t arguments_;
  std::vector<size_t> places_;  // in LaunchExtents, of each tag
};

}  // namespace blockffn
