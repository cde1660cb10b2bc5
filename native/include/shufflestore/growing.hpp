// Bytes of unknown number, gathered end to end in one block of the cache.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shufflestore/buffer.hpp"

namespace shufflestore {

class Growing {
 public:
  const std::uint8_t* data() const noexcept { return block_.data(); }
  std::size_t size() const noexcept { return size_; }

  // Throws std::bad_alloc; then nothing has changed. `from` is not among these bytes.
  void append(const void* from, std::size_t size);

  // Forgets everything behind the first `size` bytes.
  void cut(std::size_t size) noexcept {
    if (size < size_) size_ = size;
  }

  // Hands the block over: its first size() bytes are the ones gathered, the rest is room that was left.
  // Begins anew with as much room, since what comes next is mostly as large.
  Buffer take();

 private:
  void grow(std::size_t more);

  Buffer block_;
  std::size_t size_ = 0;
  std::size_t first_room_ = 0;
};

}  // namespace shufflestore
