// Buffers of a device: those in use, by their pointers, and freed ones, kept for the next of their sizes.
#pragma once

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <functional>
#include <string>
#include <unordered_map>
#include <utility>

#include "spare_buffers.h"

namespace blockffn {

// What a device has room for; `kind` and `name` are for messages.
struct Room {
  const char* kind;
  std::string name;
  size_t largest, total;  // bytes of one buffer, and of all
};

// `Owner` owns a buffer; its get() is the pointer that the buffer goes by. The caller holds a lock.
template <class Owner>
class Buffers {
 public:
  // `release` gets those that are not kept any longer.
  explicit Buffers(std::function<void(Owner)> release) : spare_(std::move(release)) {}

  // One that is kept, or else `make(bytes)`, tried again without those kept if it throws. Throws when there is no room.
  template <class Make>
  auto Allocate(size_t bytes, const Room& room, Make make) {
    bytes = std::max<size_t>(bytes, 1);
    if (bytes > room.largest) {
      TVM_FFI_THROW(RuntimeError) << room.kind << ": a buffer of " << bytes << " bytes is larger than " << room.name
                                  << " allows (" << room.largest << " bytes)";
    }
    if (bytes + in_use_ > room.total) {
      TVM_FFI_THROW(RuntimeError) << room.kind << ": a buffer of " << bytes << " bytes does not fit into the memory of "
                                  << room.name << " (" << in_use_ << " of " << room.total << " bytes in use)";
    }
    Owner owner;
    if (!spare_.Take(bytes, &owner)) {
      spare_.Shrink(room.total - in_use_ - bytes);
      try {
        owner = make(bytes);
      } catch (const std::exception&) {
        if (!spare_.Shrink(0)) throw;
        owner = make(bytes);
      }
    }
    const auto pointer = owner.get();
    used_.emplace(pointer, std::pair(bytes, std::move(owner)));
    in_use_ += bytes;
    return pointer;
  }

  // Keeps the buffer. Throws when it is none that is in use.
  void Free(void* pointer) {
    const auto found = used_.find(pointer);
    if (found == used_.end()) TVM_FFI_THROW(RuntimeError) << "a buffer is freed that is not in use";
    auto [bytes, owner] = std::move(found->second);
    used_.erase(found);
    in_use_ -= bytes;
    spare_.Keep(bytes, std::move(owner));
  }

  // Who owns the buffer in use that goes by `pointer`; null when there is none.
  const Owner* Find(void* pointer) const {
    const auto found = used_.find(pointer);
    return found == used_.end() ? nullptr : &found->second.second;
  }

  size_t in_use() const { return in_use_; }      // bytes
  size_t kept() const { return spare_.bytes(); }  // bytes of freed ones

 private:
  std::unordered_map<void*, std::pair<size_t, Owner>> used_;
  size_t in_use_ = 0;
  SpareBuffers<Owner> spare_;
};

}  // namespace blockffn
