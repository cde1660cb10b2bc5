// Output memory: blocks of 64-byte alignment from a small cache, since the page faults of a fresh block
// would cost as much as the copy into it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace shufflestore {

// Gives a block back, to the cache or to the system. Any thread. Null is allowed.
void release_block(std::uint8_t* data) noexcept;

// Bytes that wait in the cache.
std::size_t cached_bytes() noexcept;

// Its bound, for the whole process: the least that anybody asked for so far, and at first kMostCached.
inline constexpr std::size_t kMostCached = std::size_t{64} << 20;
void bound_cache(std::size_t bytes) noexcept;

// Returns everything in the cache to the system.
void trim_cache() noexcept;

// The one owner of a block.
class Buffer {
 public:
  // Not initialised. Throws std::bad_alloc.
  static Buffer allocate(std::uint64_t size);

  Buffer() noexcept = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { release_block(data_); }

  std::uint8_t* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  // Hands the block over; whoever takes it calls release_block.
  std::uint8_t* release() noexcept { return std::exchange(data_, nullptr); }

 private:
  Buffer(std::uint8_t* data, std::size_t size) noexcept : data_(data), size_(size) {}

  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace shufflestore
