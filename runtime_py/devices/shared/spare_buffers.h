// Freed buffers, kept for the next ones of their sizes: every pass asks for the same.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <iterator>
#include <utility>

namespace blockffn {

template <class Buffer>
class SpareBuffers {
 public:
  static constexpr size_t kBytes = 256 << 20, kCount = 256;  // how much is kept

  explicit SpareBuffers(std::function<void(Buffer)> release) : release_(std::move(release)) {}

  // Moves the buffer of this size that was freed last to `buffer`; false where there is none.
  bool Take(size_t bytes, Buffer* buffer) {
    const auto found =
        std::find_if(spare_.rbegin(), spare_.rend(), [bytes](const auto& spare) { return spare.first == bytes; });
    if (found == spare_.rend()) return false;
    *buffer = std::move(found->second);
    bytes_ -= bytes;
    spare_.erase(std::next(found).base());
    return true;
  }

  void Keep(size_t bytes, Buffer buffer) {
    bytes_ += bytes;
    spare_.emplace_back(bytes, std::move(buffer));
    Shrink(kBytes);
  }

  // Keeps at most `bytes`, those freed last. True when any were released.
  bool Shrink(size_t bytes) {
    const size_t before = spare_.size();
    while (bytes_ > bytes || spare_.size() > kCount) {
      bytes_ -= spare_.front().first;
      release_(std::move(spare_.front().second));
      spare_.pop_front();
    }
    return spare_.size() < before;
  }

  size_t bytes() const { return bytes_; }

 private:
  std::function<void(Buffer)> release_;
  std::deque<std::pair<size_t, Buffer>> spare_;  // freed last: at the end
  size_t bytes_ = 0;
};

}  // namespace blockffn
