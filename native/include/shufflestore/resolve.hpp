// From record ids to reads: tables of numbers in, reads with slots out. No I/O, no records' meaning. The
// tables are specified in shufflestore/format/resolve.py and dataset/residency.py; the binding has checked
// their shapes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "shufflestore/read.hpp"

namespace shufflestore {

using Numbers = std::span<const std::int64_t>;
using Table = std::vector<std::int64_t>;

// Which records each shard has, and how its pages are cut. All but `first_id` have an entry a shard.
struct ShardTable {
  Numbers first_id;                      // one more: ids of shard i are [first_id[i], first_id[i + 1])
  Numbers chunk_rows;                    // 0: unknown, or they differ
  Numbers chunk_pages;                   // pages of a full chunk
  Numbers page_rows;                     // rows of a full page
  Numbers first_page;                    // of the shard among all pages; one more entry at the end
  std::span<const std::uint32_t> files;  // the store's handle
};

struct Found {
  std::int64_t *shard, *chunk, *row, *page, *entry;  // an entry a record; row is within the chunk
  std::uint32_t* file;
};

// Returns how many records lie in shards that the table does not know enough of; only their shard is filled
// in. Throws std::out_of_range, naming the first id that no shard has.
std::size_t find(Numbers ids, const ShardTable& shards, const Found& out);

struct Arena {
  std::span<const std::uint8_t> data;
  std::span<const std::int32_t> slot_of;  // page number -> slot, counted from 1; 0: not here
  std::int64_t slot_bytes;
};

// How shards of one layout answer for a projection.
struct Program {
  Table geometry;  // page head bytes, entry bytes, page bytes, fixed bytes a record
  Table levels;    // rows of 4
  Table reads;     // rows of 8
  Table bits;      // rows of 2
  Table copies;    // rows of 3
  Table nulls;

  std::size_t level_count() const noexcept { return levels.size() / 4; }
  std::size_t read_count() const noexcept { return reads.size() / 8; }
  std::size_t bit_count() const noexcept { return bits.size() / 2; }
  std::size_t fixed_bytes() const noexcept { return static_cast<std::size_t>(geometry[3]); }

  // Throws std::invalid_argument where a table points outside an entry or page.
  void check() const;
};

// A window of records, batch after batch.
struct Wanted {
  Numbers pages;                         // records: number of its page
  Numbers entries;                       // records: which entry of the page
  std::span<const std::uint32_t> files;  // records: the store's handle of its shard
  Numbers layouts;                       // records: which program; empty for the first one
  Numbers batch_ends;
  Numbers lay;  // reads x 4: output, op, ratio, row in `shift` or -1
  bool verify;
};

// What is filled in: a row of numbers a level, bit or bit range; `fixed` has a block a copied value, see
// resolve.py.
struct Resolved {
  std::vector<Read> reads;
  std::span<std::uint64_t> ends;          // batches
  std::span<std::uint64_t> output_sizes;  // batches x outputs
  std::span<std::int64_t> regions;        // batches x reads x 2
  std::span<std::int64_t> counts;         // levels x records
  std::span<std::int64_t> offsets;        // levels x (records + batches)
  std::span<std::uint8_t> bits;           // bits x records
  std::span<std::uint8_t> shift;          // bit ranges x records
  std::span<std::uint8_t> fixed;
};

inline constexpr std::int64_t kFound = -1;
inline constexpr std::int64_t kPageMissing = -2;
inline constexpr std::uint8_t kAllValid = 255;  // shift of a bit range that the shard does not have

// Returns the index of a record whose page contradicts itself, else kPageMissing where a page is not in the
// arena, else kFound. Throws std::invalid_argument for a number that leads outside what there is.
std::int64_t resolve(const Arena& arena, std::span<const Program* const> programs, const Wanted& wanted,
                     Resolved& out);

}  // namespace shufflestore
