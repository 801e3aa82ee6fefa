// What TVM's host code hands to a kernel: its arguments, and behind them the extents of the launch.
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

class LaunchReader {
 public:
  // `kind` begins the messages. Throws ValueError for a tag that is none.
  LaunchReader(const char* kind, const KernelInfo& info)
      : kind_(kind), name_(info.name), arguments_(info.arguments) {
    for (const std::string& tag : info.tags) places_.push_back(PlaceOf(tag));
  }

  // The extents among the values that a kernel was called with. Throws TypeError when these are too few or many.
  LaunchExtents operator()(const tvm::ffi::PackedArgs& values) const {
    const size_t count = arguments_.size();
    if (static_cast<size_t>(values.size()) != count + places_.size()) {
      TVM_FFI_THROW(TypeError) << kind_ << ": kernel " << name_ << " takes " << count + places_.size()
                               << " values, found " << values.size();
    }
    LaunchExtents launch = {1, 1, 1, 1, 1, 1, 0};
    for (size_t i = 0; i < places_.size(); ++i) launch[places_[i]] = values[count + i].cast<int64_t>();
    return launch;
  }

  // The bits of argument `index` as a kernel takes them, in the first bytes; none for other types than integers, float
  // and double. Throws ValueError for an integer that the type cannot hold.
  std::optional<uint64_t> NumberBits(size_t index, const tvm::ffi::AnyView& value) const {
    const DLDataType type = arguments_[index];
    uint64_t bits = 0;
    if (type.code == kDLFloat && type.bits == 64) {
      const auto number = value.cast<double>();
      std::memcpy(&bits, &number, sizeof number);
    } else if (type.code == kDLFloat && type.bits == 32) {
      const auto number = static_cast<float>(value.cast<double>());
      std::memcpy(&bits, &number, sizeof number);
    } else if (type.code == kDLInt || type.code == kDLUInt || type.code == kDLBool) {
      const auto number = value.cast<int64_t>();
      if (type.bits < 64) {
        const bool is_signed = type.code == kDLInt;
        const int64_t end = int64_t{1} << (type.bits - is_signed);
        if (number >= end || number < (is_signed ? -end : 0)) {
          TVM_FFI_THROW(ValueError) << kind_ << ": argument " << index << " of kernel " << name_ << " is " << number
                                    << ", which does not fit into its " << int{type.bits} << " bits";
        }
      }
      bits = static_cast<uint64_t>(number);
    } else {
      return std::nullopt;
    }
    return bits;
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
  const std::vector<DLDataType> arguments_;
  std::vector<size_t> places_;  // in LaunchExtents, of each tag
};

}  // namespace blockffn
