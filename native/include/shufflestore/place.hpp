// From bytes that were fetched into the slots of the reads that they serve.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "shufflestore/read.hpp"

namespace shufflestore {

// A read whose bytes are not those that were written.
struct Misplaced {
  std::uint64_t index = 0;  // of the read
  std::uint32_t found = 0;  // CRC32C of what came
};

// Checks, copies or widens each read's bytes into its slot, and fills the slots of kZero. `data` are the
// file's bytes from `data_offset` on; a read's file number is not looked at. Stops at the first wrong
// checksum: the slots of the reads before it are filled, its own holds anything, later ones are as they were.
//
// Throws std::invalid_argument before any byte is written where a read reaches outside `data` or its output,
// its op or flags are unknown, or an output shares memory with `data`. Works on a copy of `reads`, so nobody
// changes a read that was found good. Outputs that overlap each other hold what was written last.
std::optional<Misplaced> place(std::span<const std::uint8_t> data, std::uint64_t data_offset,
                               std::span<const Read> reads, std::span<const std::span<std::uint8_t>> outputs);

}  // namespace shufflestore
