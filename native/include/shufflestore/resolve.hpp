// From record ids to reads: tables of numbers in, reads with slots out. No I/O, no records' meaning. The
// tables are specified in shufflestore/format/resolve.py; the binding has checked their shapes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "shufflestore/read.hpp"

namespace shufflestore {

using Numbers = std::span<const std::int64_t>;
using Table = std::vector<std::int64_t>;

// Which records each shard has, and how its pages are cut. All but the first and the last two have an entry a
// shard.
struct ShardTable {
  Numbers first_id;                      // one more: ids of shard i are [first_id[i], first_id[i + 1])
  Numbers page_rows;                     // rows of a full page; 0: the shard is not known yet
  Numbers chunk_rows;                    // 0: they differ, see `chunks`
  Numbers chunk_pages;                   // pages of a full chunk; how many chunks there are, if they differ
  Numbers first_page;                    // of the shard among all pages; one more entry at the end
  Numbers layout;                        // which program answers for the shard
  std::span<const std::uint32_t> files;  // the store's handle
  Numbers chunks;                        // where in the two below a shard's chunks begin, if they differ,
  Numbers chunk_first_row;               // row in the shard of each
  Numbers chunk_first_page;              // page in the shard of each
};

struct Place {
  std::int64_t shard, chunk, row;  // row is within the chunk
  std::int64_t page, entry;        // page is counted through all shards
};

// Where a record is; false if its shard is not known yet, and then only that is filled in.
class Finder {
 public:
  explicit Finder(const ShardTable& shards);
  // Throws std::out_of_range, naming an id that no shard has.
  bool find(std::int64_t id, Place& place) const;

 private:
  std::size_t shard_of(std::int64_t id) const;

  const ShardTable& shards_;
  double per_id_ = 0;  // shards an id
};

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
struct Window {
  Numbers ids;
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
inline constexpr std::int64_t kShardMissing = -3;
inline constexpr std::uint8_t kAllValid = 255;  // shift of a bit range that the shard does not have

// Returns the index of a record whose page contradicts itself, else kShardMissing where a shard is not known
// yet, else kPageMissing where a page is not in the arena, else kFound. Throws std::invalid_argument for a
// number that leads outside what there is.
std::int64_t resolve(const Arena& arena, const ShardTable& shards, std::span<const Program* const> programs,
                     const Window& window, Resolved& out);

}  // namespace shufflestore
