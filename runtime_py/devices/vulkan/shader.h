// What a kernel's SPIR-V says about itself.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace blockffn::vulkan {

class Shader {
 public:
  // Throws ValueError when `words` are no shader with entry point `name`.
  Shader(std::string name, std::vector<uint32_t> words);

  const std::string name;
  const std::vector<uint32_t> words;

  const std::vector<uint32_t>& capabilities() const { return capabilities_; }
  const std::array<uint32_t, 3>& group() const { return group_; }  // work-items in x, y, z
  uint64_t local_bytes() const { return local_bytes_; }            // of memory that a work-group shares
  uint32_t bindings() const { return bindings_; }  // the highest binding and one
  // Whether it may write to the storage buffer of a binding: all that it does not declare read-only.
  bool Writes(uint32_t binding) const;

 private:
  std::vector<uint32_t> capabilities_;
  std::array<uint32_t, 3> group_ = {0, 0, 0};
  uint64_t local_bytes_ = 0;
  uint32_t bindings_ = 0;
  std::map<uint32_t, bool> read_only_;  // by binding
};

}  // namespace blockffn::vulkan
