// A class of devices behind TVM's DeviceAPI, and the counters of their memory that Python reads.
#pragma once

#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <string>
#include <vector>

namespace blockffn {

// `Device` has static members All(), Get(index), kType (DLPack's number of its kind) and Pointer (what a buffer is to
// it), and members Attribute(kind), Allocate, Free, Write, Read, Copy, Finish, memory_in_use and memory_kept.
template <class Device>
class DeviceApi final : public tvm::runtime::DeviceAPI {
 public:
  using Pointer = typename Device::Pointer;
  using Kind = tvm::runtime::DeviceAttrKind;

  // "device_api.`kind`", "blockffn.`kind`.memory_in_use" and ".memory_kept" as global functions.
  static void Register(const std::string& kind) {
    tvm::ffi::reflection::GlobalDef()
        .def_packed(("device_api." + kind).c_str(),
                    [](tvm::ffi::PackedArgs, tvm::ffi::Any* result) {
                      static auto* api = new DeviceApi();
                      *result = static_cast<void*>(static_cast<tvm::runtime::DeviceAPI*>(api));
                    })
        .def(("blockffn." + kind + ".memory_in_use").c_str(),
             [](int index) { return Device::Get(index).memory_in_use(); })
        .def(("blockffn." + kind + ".memory_kept").c_str(),
             [](int index) { return Device::Get(index).memory_kept(); });
  }

  // The device that TVM's host code chose last on this thread.
  static Device& Current() { return Device::Get(current_); }

  void SetDevice(DLDevice device) final { current_ = device.device_id; }

  void GetAttr(DLDevice device, Kind kind, tvm::ffi::Any* result) final {
    if (kind == Kind::kExist) {
      const auto count = static_cast<int64_t>(Device::All().size());
      *result = static_cast<int64_t>(device.device_id >= 0 && device.device_id < count);
    } else if (kind == Kind::kWarpSize) {
      *result = static_cast<int64_t>(1);  // nothing relies on lanes in step
    } else {
      *result = Device::Get(device.device_id).Attribute(kind);
    }
  }

  void* AllocDataSpace(DLDevice device, size_t bytes, size_t, DLDataType) final { return On(device).Allocate(bytes); }

  void FreeDataSpace(DLDevice device, void* buffer) final { On(device).Free(static_cast<Pointer>(buffer)); }

  void StreamSync(DLDevice device, TVMStreamHandle) final { On(device).Finish(); }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      DLDevice from_device, DLDevice to_device, DLDataType, TVMStreamHandle) final {
    if (bytes == 0) return;
    const bool reads = from_device.device_type == Device::kType, writes = to_device.device_type == Device::kType;
    const auto source = static_cast<Pointer>(const_cast<void*>(from)), target = static_cast<Pointer>(to);
    if (reads && writes && from_device.device_id == to_device.device_id) {
      On(from_device).Copy(source, from_offset, target, to_offset, bytes);
    } else if (reads && writes) {  // other devices cannot see the buffer
      std::vector<char> between(bytes);
      On(from_device).Read(source, from_offset, between.data(), bytes);
      On(to_device).Write(between.data(), target, to_offset, bytes);
    } else if (reads) {
      On(from_device).Read(source, from_offset, static_cast<char*>(to) + to_offset, bytes);
    } else {
      On(to_device).Write(static_cast<const char*>(from) + from_offset, target, to_offset, bytes);
    }
  }

 private:
  static Device& On(DLDevice device) { return Device::Get(device.device_id); }

  inline static thread_local int current_ = 0;
};

}  // namespace blockffn
