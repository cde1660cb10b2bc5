// Narrow integers in a file, wide ones in the batch: token ids of two bytes become int64 on the way.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shufflestore {

struct Widening {
  std::size_t source = 0;  // bytes of an integer in the file; 0 where the code means nothing
  std::size_t target = 0;  // and in the output
  // `to` and `from` need no alignment and do not overlap.
  void (*run)(std::uint8_t* to, const std::uint8_t* from, std::size_t count) noexcept = nullptr;
};

// The widening of an op code 16 + 8 * source + target (see READ in shufflestore/storage/base.py).
const Widening& widening(std::uint8_t op) noexcept;

}  // namespace shufflestore
