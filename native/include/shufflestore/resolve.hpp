// From pages of a row index to reads: tables of numbers in, ranges and slots out. No I/O, no records'
// meaning. The tables are specified in shufflestore/format/resolve.py; all counts were checked by the
// binding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace shufflestore {

struct LocateTables {
  std::span<const std::int64_t> geometry;  // page head bytes, entry bytes, page bytes, fixed bytes a record
  std::span<const std::int64_t> levels;    // rows of 4
  std::span<const std::int64_t> reads;     // rows of 8
  std::span<const std::int64_t> bits;      // rows of 2
  std::span<const std::int64_t> copies;    // rows of 3
  std::span<const std::int64_t> nulls;
};

struct Located {
  std::uint64_t* offset;
  std::uint64_t* size;
  std::uint64_t* slot;
  std::uint32_t* crc;
  std::uint8_t* shift;
  std::int64_t* counts;
  std::uint8_t* bits;
  std::uint8_t* fixed;
  std::size_t rows;
};

// Returns the index of the first record whose page contradicts itself, -1 if none does.
// Throws std::invalid_argument where a table points outside an entry or page.
std::int64_t locate(std::span<const std::uint8_t> arena, std::span<const std::int64_t> pages,
                    std::span<const std::int64_t> slots, std::span<const std::int64_t> rows,
                    const LocateTables& tables, const Located& out);

struct LayOut {
  std::span<const std::uint64_t> offset, size, slot;  // records x reads
  std::span<const std::uint32_t> crc;
  std::span<const std::uint32_t> files;      // records
  std::span<const std::int64_t> batch_ends;  // batches
  std::span<const std::int64_t> lay;         // reads x 3: output, op, ratio
  bool verify;
  std::span<std::uint64_t> reads;         // five words a read
  std::span<std::uint64_t> ends;          // batches
  std::span<std::uint64_t> output_sizes;  // batches x outputs
  std::span<std::int64_t> regions;        // batches x reads x 2
};

void lay_out(const LayOut& job);

}  // namespace shufflestore
