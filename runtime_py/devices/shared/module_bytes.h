// Reads modules of kernels as TVM serializes them: little-endian, strings and lists behind a 64-bit length.
#pragma once

#include <tvm/ffi/error.h>
#include <tvm/ffi/string.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace blockffn {

// Throws ValueError "`kind`: the module's bytes end early" when there are fewer than are asked for.
class ModuleReader {
 public:
  ModuleReader(const char* kind, const tvm::ffi::Bytes& bytes)
      : kind_(kind), at_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  template <class T>
  T Number() {
    T value;
    std::memcpy(&value, Take(sizeof value), sizeof value);
    return value;
  }

  std::string String() {
    const auto size = Number<uint64_t>();
    return std::string(Take(size), size);
  }

  template <class T>
  std::vector<T> List(T (ModuleReader::*item)()) {
    std::vector<T> items;
    for (auto left = Number<uint64_t>(); left > 0; --left) items.push_back((this->*item)());
    return items;
  }

 private:
  const char* Take(uint64_t size) {
    if (size > static_cast<uint64_t>(end_ - at_)) TVM_FFI_THROW(ValueError) << kind_ << ": the module's bytes end early";
    const char* taken = at_;
    at_ += size;
    return taken;
  }

  const char* kind_;
  const char* at_;
  const char* end_;
};

// How a kernel is called: its arguments, then one number per launch tag ("blockIdx.x", ...).
struct KernelInfo {
  std::string name;
  std::vector<DLDataType> arguments;
  std::vector<std::string> tags;
};

// TVM's map of function infos, which a module begins with, behind its format.
inline std::vector<KernelInfo> ReadKernelInfos(ModuleReader& reader) {
  std::vector<KernelInfo> infos;
  for (auto left = reader.Number<uint64_t>(); left > 0; --left) {
    KernelInfo info{reader.String(), {}, {}};
    reader.String();  // the name once more
    info.arguments = reader.List(&ModuleReader::Number<DLDataType>);
    info.tags = reader.List(&ModuleReader::String);
    reader.List(&ModuleReader::Number<int32_t>);  // marks of arguments that only other backends have
    infos.push_back(std::move(info));
  }
  return infos;
}

}  // namespace blockffn
