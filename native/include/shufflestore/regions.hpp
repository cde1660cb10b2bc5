// Which parts of a map have their page tables filled in. A first touch of a page costs a fault, some
// microseconds in a virtual machine: more than the copy. Where the page cache holds a region already, one
// call maps all of it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace shufflestore {

class Regions {
 public:
  Regions() noexcept = default;
  explicit Regions(std::size_t map_size);  // throws std::bad_alloc

  // Call before bytes [offset, offset + size) of the map at `base` are read. Never waits for more than a
  // sixteenth of a region; asks once that a cold one be read ahead.
  void touch(const std::uint8_t* base, std::size_t map_size, std::uint64_t offset,
             std::uint64_t size) noexcept {
    if (states_ == nullptr || size == 0) return;
    const auto last = (offset + size - 1) / kRegion;
    for (auto region = offset / kRegion; region <= last; ++region)
      if (states_[region].load(std::memory_order_relaxed) != kMapped) look(base, map_size, region);
  }

 private:
  static constexpr std::size_t kRegion = 2 << 20;
  static constexpr std::uint8_t kMapped = 255;
  static constexpr std::uint8_t kPatience =
      64;  // touches of a region that was cold before it is looked at again

  void look(const std::uint8_t* base, std::size_t map_size, std::uint64_t region) noexcept;

  std::unique_ptr<std::atomic<std::uint8_t>[]>
      states_;  // kMapped, touches until the next look, or 0: never looked at
};

}  // namespace shufflestore
