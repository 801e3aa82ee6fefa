#include "shader.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstring>

namespace blockffn::vulkan {
namespace {

// https://registry.khronos.org/SPIR-V/specs/unified1/SPIRV.html
constexpr uint32_t kMagic = 0x07230203, kHeader = 5;
enum Op : uint32_t {
  kEntryPoint = 15,
  kExecutionMode = 16,
  kCapability = 17,
  kTypeBool = 20,
  kTypeInt = 21,
  kTypeFloat = 22,
  kTypeVector = 23,
  kTypeArray = 28,
  kTypeStruct = 30,
  kTypePointer = 32,
  kConstant = 43,
  kVariable = 59,
  kDecorate = 71,
  kMemberDecorate = 72,
};
constexpr uint32_t kGLCompute = 5, kLocalSize = 17, kWorkgroup = 4, kNonWritable = 24, kBinding = 33;
constexpr uint32_t kBindings = 1 << 16;

std::string Text(const uint32_t* words, uint32_t count) {
  const char* text = reinterpret_cast<const char*>(words);
  return std::string(text, strnlen(text, 4 * static_cast<size_t>(count)));
}

}  // namespace

Shader::Shader(std::string name_, std::vector<uint32_t> words_) : name(std::move(name_)), words(std::move(words_)) {
  const auto damaged = [this](const char* why) {
    TVM_FFI_THROW(ValueError) << "Vulkan: the shader of kernel " << name << " is damaged: " << why;
  };
  if (words.size() < kHeader || words[0] != kMagic) damaged("it is no SPIR-V");
  uint32_t entry = 0;
  bool found = false;
  std::map<uint32_t, uint64_t> bytes;  // of types
  std::map<uint32_t, uint32_t> pointee, constants, bindings, read_only_members, members;
  std::map<uint32_t, uint32_t> variables;  // -> the pointer's type
  uint32_t length = 0;
  for (size_t at = kHeader; at < words.size(); at += length) {
    const uint32_t* op = &words[at];
    length = op[0] >> 16;
    if (length == 0 || length > words.size() - at) damaged("it ends within an instruction");
    const auto takes = [&](uint32_t least) {
      if (length < least) damaged("an instruction is too short");
    };
    switch (op[0] & 0xffff) {
      case kCapability:
        takes(2);
        capabilities_.push_back(op[1]);
        break;
      case kEntryPoint:
        takes(4);
        if (op[1] == kGLCompute && Text(op + 3, length - 3) == name) {
          found = true;
          entry = op[2];
        }
        break;
      case kExecutionMode:
        takes(3);
        if (op[2] == kLocalSize && found && op[1] == entry) {
          takes(6);
          group_ = {op[3], op[4], op[5]};
        }
        break;
      case kDecorate:
        takes(3);
        if (op[2] == kBinding) {
          takes(4);
          bindings[op[1]] = op[3];
        }
        break;
      case kMemberDecorate:
        takes(4);
        if (op[3] == kNonWritable) ++read_only_members[op[1]];
        break;
      case kTypeBool:
        takes(2);
        bytes[op[1]] = 4;
        break;
      case kTypeInt:
      case kTypeFloat:
        takes(3);
        bytes[op[1]] = op[2] / 8;
        break;
      case kTypeVector:
        takes(4);
        bytes[op[1]] = bytes[op[2]] * op[3];
        break;
      case kTypeArray:
        takes(4);
        bytes[op[1]] = bytes[op[2]] * constants[op[3]];
        break;
      case kTypeStruct:
        takes(2);
        members[op[1]] = length - 2;
        break;
      case kTypePointer:
        takes(4);
        pointee[op[1]] = op[3];
        break;
      case kConstant:
        takes(4);
        constants[op[2]] = op[3];
        break;
      case kVariable:
        takes(4);
        variables[op[2]] = op[1];
        if (op[3] == kWorkgroup) local_bytes_ += bytes[pointee[op[1]]];
        break;
    }
  }
  if (!found) damaged("it has no such entry point");
  if (group_[0] == 0) damaged("it does not say how large its work-groups are");
  for (const auto& [variable, binding] : bindings) {
    const uint32_t block = pointee[variables[variable]];
    if (binding >= kBindings) damaged("it uses a binding beyond all that devices have");
    bindings_ = std::max(bindings_, binding + 1);
    bool& read_only = read_only_.emplace(binding, true).first->second;  // several variables may share a binding
    read_only &= members[block] > 0 && read_only_members[block] == members[block];
  }
}

bool Shader::Writes(uint32_t binding) const {
  const auto found = read_only_.find(binding);
  return found == read_only_.end() || !found->second;
}

}  // namespace blockffn::vulkan
