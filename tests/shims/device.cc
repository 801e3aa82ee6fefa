// Devices "cuda" and "metal" for tests: memory of the processor, and kernels that were compiled for it.
#include <dlfcn.h>
#include <sys/mman.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <atomic>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "../../runtime_py/devices/shared/launch.h"
#include "../../runtime_py/devices/shared/module_bytes.h"

namespace blockffn::shims {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAttrKind;

constexpr size_t kAlignment = 256;  // cudaMalloc's
constexpr size_t kPage = 4096;
constexpr size_t kMoat = 1 << 20;  // bytes on both sides of what is allocated that nobody may touch

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

std::atomic<int64_t> launches{0};

class Memory final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(DLDevice) final {}
  void GetAttr(DLDevice device, DeviceAttrKind kind, ffi::Any* result) final {
    if (kind == DeviceAttrKind::kExist) {
      *result = static_cast<int64_t>(device.device_id == 0);
    } else if (kind == DeviceAttrKind::kDeviceName) {
      *result = ffi::String("the processor, by a shim");
    } else {
      *result = nullptr;
    }
  }
  // Ends where pages begin that nobody may touch.
  void* AllocDataSpace(DLDevice, size_t bytes, size_t, DLDataType) final {
    const size_t used = RoundUp(bytes, kAlignment), pages = RoundUp(used, kPage);
    void* mapped = mmap(nullptr, pages + 2 * kMoat, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    char* begin = static_cast<char*>(mapped) + kMoat;
    mprotect(begin, pages, PROT_READ | PROT_WRITE);
    void* memory = begin + pages - used;
    mappings_[memory] = {mapped, pages + 2 * kMoat};
    return memory;
  }
  void FreeDataSpace(DLDevice, void* memory) final {
    const auto [mapped, bytes] = mappings_.at(memory);
    mappings_.erase(memory);
    munmap(mapped, bytes);
  }
  void StreamSync(DLDevice, TVMStreamHandle) final {}

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes, DLDevice, DLDevice,
                      DLDataType, TVMStreamHandle) final {
    std::memcpy(static_cast<char*>(to) + to_offset, static_cast<const char*>(from) + from_offset, bytes);
  }

 private:
  std::map<void*, std::pair<void*, size_t>> mappings_;  // by what was allocated
};

using Entry = const char* (*)(const size_t* extents, const uint64_t* slots);

class Kernel {
 public:
  Kernel(const char* kind, const KernelInfo& info, void* library)
      : info_(info), read_launch_(kind, info),
        entry_(reinterpret_cast<Entry>(dlsym(library, ("shim_" + info.name).c_str()))) {
    if (entry_ == nullptr) TVM_FFI_THROW(ValueError) << kind << ": kernel " << info.name << " was not compiled";
  }

  void Launch(ffi::PackedArgs values) const {
    const LaunchExtents launch = read_launch_(values);
    std::vector<uint64_t> slots;
    for (size_t i = 0; i < info_.arguments.size(); ++i) {
      const auto number = read_launch_.NumberBits(i, values[i]);
      slots.push_back(number ? *number : reinterpret_cast<uint64_t>(values[i].cast<void*>()));
    }
    ++launches;
    if (const char* failure = entry_(launch.data(), slots.data())) {
      TVM_FFI_THROW(RuntimeError) << "kernel " << info_.name << ": " << failure;
    }
  }

 private:
  const KernelInfo info_;
  const LaunchReader read_launch_;
  const Entry entry_;
};

class Module final : public ffi::ModuleObj {
 public:
  // CUDA's modules hold one text, Metal's one for each kernel.
  Module(const char* kind, const ffi::Bytes& bytes) : kind_(kind) {
    ModuleReader reader(kind, bytes);
    const std::string form = reader.String();
    if (form != kind) TVM_FFI_THROW(ValueError) << kind << ": expected kernels as source, found " << form;
    const std::vector<KernelInfo> infos = ReadKernelInfos(reader);
    std::string source;
    if (form == "cuda") {
      source = reader.String();
    } else {
      for (auto left = reader.Number<uint64_t>(); left > 0; --left) {
        source += "// Function: " + reader.String() + "\n";
        source += reader.String();
      }
    }
    const auto compile = ffi::Function::GetGlobalRequired("blockffn.shims.compile");
    const auto path = compile(ffi::String(form), ffi::String(source)).cast<ffi::String>();
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) TVM_FFI_THROW(RuntimeError) << kind << ": " << dlerror();
    for (const KernelInfo& info : infos) kernels_[info.name] = std::make_shared<Kernel>(kind, info, library);
  }

  const char* kind() const final { return kind_; }
  int GetPropertyMask() const final { return ffi::Module::kRunnable; }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    const auto found = kernels_.find(name);
    if (found == kernels_.end()) return std::nullopt;
    return ffi::Function::FromPacked(
        [kernel = found->second](ffi::PackedArgs values, ffi::Any*) { kernel->Launch(values); });
  }

 private:
  const char* kind_;
  std::map<std::string, std::shared_ptr<Kernel>> kernels_;
};

TVM_FFI_STATIC_INIT_BLOCK() {
  static Memory memory;
  for (const char* kind : {"cuda", "metal"}) {
    const std::string name = kind;
    ffi::reflection::GlobalDef()
        .def_packed(("device_api." + name).c_str(), [](ffi::PackedArgs, ffi::Any* result) {
          *result = static_cast<void*>(static_cast<tvm::runtime::DeviceAPI*>(&memory));
        })
        .def(("ffi.Module.load_from_bytes." + name).c_str(),
             [kind](const ffi::Bytes& bytes) { return ffi::Module(ffi::make_object<Module>(kind, bytes)); })
        .def(("blockffn." + name + ".launches").c_str(), [] { return launches.load(); });
  }
}

}  // namespace
}  // namespace blockffn::shims
