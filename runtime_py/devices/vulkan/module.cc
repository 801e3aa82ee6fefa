#include "module.h"

#include <tvm/ffi/function.h>

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "../shared/module_bytes.h"
#include "kernel.h"

namespace blockffn::vulkan {
namespace {

namespace ffi = tvm::ffi;

class VulkanModule final : public ffi::ModuleObj {
 public:
  explicit VulkanModule(const ffi::Bytes& bytes) : bytes_(bytes) {
    ModuleReader reader("Vulkan", bytes);
    reader.String();  // the format: "vulkan"
    const std::vector<KernelInfo> infos = ReadKernelInfos(reader);
    struct Code {
      uint32_t flags;
      std::vector<uint32_t> words;
    };
    std::map<std::string, Code> codes;
    for (auto left = reader.Number<uint64_t>(); left > 0; --left) {
      std::string name = reader.String();
      const ffi::Bytes shader(reader.String());
      ModuleReader inner("Vulkan", shader);
      const auto flags = inner.Number<uint32_t>();
      codes[std::move(name)] = {flags, inner.List(&ModuleReader::Number<uint32_t>)};
    }
    for (const KernelInfo& info : infos) {
      const auto found = codes.find(info.name);
      if (found == codes.end()) TVM_FFI_THROW(ValueError) << "Vulkan: the module lacks the shader of " << info.name;
      kernels_[info.name] = std::make_shared<Kernel>(info, found->second.flags, std::move(found->second.words));
    }
  }

  const char* kind() const final { return "vulkan"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }

  // A kernel; or "check_device", which takes a device's number and throws when the device lacks what a kernel needs.
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    if (name == "check_device") {
      return ffi::Function::FromTyped([kernels = kernels_](int device) {
        for (const auto& [name, kernel] : kernels) kernel->CheckDevice(Device::Get(device));
      });
    }
    const auto found = kernels_.find(name);
    if (found == kernels_.end()) return std::nullopt;
    return ffi::Function::FromPacked([kernel = found->second](ffi::PackedArgs values, ffi::Any*) {
      kernel->Launch(CurrentDevice(), values);
    });
  }

 private:
  const ffi::Bytes bytes_;
  std::map<std::string, std::shared_ptr<Kernel>> kernels_;  // shared: functions may outlive the module
};

}  // namespace

ffi::Module LoadModule(const ffi::Bytes& bytes) { return ffi::Module(ffi::make_object<VulkanModule>(bytes)); }

}  // namespace blockffn::vulkan
