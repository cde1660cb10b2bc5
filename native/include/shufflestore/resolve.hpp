// From record ids to reads: tables of numbers in, reads with slots out. No I/O, no records' meaning. The
// tables are specified in shufflestore/format/resolve.py; the binding has checked their shapes.
#pragma once

#include <algorithm>
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

// Division by the same number again and again, as shards of a data set are cut alike.
class Divider {
 public:
  struct Parts {
    std::int64_t quotient, rest;
  };
  // `value` >= 0, `by` > 0.
  Parts divide(std::int64_t value, std::int64_t by) noexcept {
    if (by != by_) {
      by_ = by;
      inverse_ = 1.0 / static_cast<double>(by);
    }
    constexpr std::int64_t kExact = std::int64_t{1} << 52;  // so far a double is off by one at most
    if (value >= kExact) return {value / by, value % by};
    auto quotient = static_cast<std::int64_t>(static_cast<double>(value) * inverse_);
    auto rest = value - quotient * by;
    if (rest < 0) {
      --quotient;
      rest += by;
    } else if (rest >= by) {
      ++quotient;
      rest -= by;
    }
    return {quotient, rest};
  }

 private:
  std::int64_t by_ = 0;
  double inverse_ = 0;
};

// Where records are. Not for several threads at once.
class Finder {
 public:
  explicit Finder(const ShardTable& shards);

  // False if the record's shard is not known yet, and then only that is filled in. Throws std::out_of_range,
  // naming an id that no shard has.
  bool find(std::int64_t id, Place& place) {
    if (id < 0 || id >= total_) refuse(id);
    const auto shard = shard_of(id);
    place.shard = static_cast<std::int64_t>(shard);
    const auto page_rows = shards_.page_rows[shard];
    if (page_rows <= 0) return false;
    const auto row = id - shards_.first_id[shard];
    if (const auto per = shards_.chunk_rows[shard]; per > 0) {
      const auto [chunk, rest] = by_chunk_.divide(row, per);
      place.chunk = chunk;
      place.row = rest;
      place.page = chunk * shards_.chunk_pages[shard];
    } else {
      find_chunk(shard, row, place);
    }
    const auto [page, entry] = by_page_.divide(place.row, page_rows);
    place.page += shards_.first_page[shard] + page;
    place.entry = entry;
    return true;
  }

 private:
  // Shards are mostly of one size: guess, and search where the guess is wrong.
  std::size_t shard_of(std::int64_t id) const {
    auto guess = std::min(static_cast<std::size_t>(static_cast<double>(id) * per_id_), last_);
    for (int step = 0; step < 4; ++step) {
      if (id < shards_.first_id[guess]) {
        --guess;  // first_id[0] is 0
      } else if (id >= shards_.first_id[guess + 1]) {
        ++guess;  // id is below the last one
      } else {
        return guess;
      }
    }
    return search(id);
  }
  [[noreturn]] void refuse(std::int64_t id) const;
  std::size_t search(std::int64_t id) const;
  void find_chunk(std::size_t shard, std::int64_t row, Place& place) const;

  const ShardTable& shards_;
  const std::int64_t total_;
  const std::size_t last_;      // shard
  const double per_id_;         // shards an id
  Divider by_chunk_, by_page_;  // rows
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
  Table reads;     // rows of 10
  Table bits;      // rows of 2
  Table copies;    // rows of 3
  Table nulls;

  std::size_t level_count() const noexcept { return levels.size() / 4; }
  std::size_t read_count() const noexcept { return reads.size() / 10; }
  std::size_t bit_count() const noexcept { return bits.size() / 2; }
  std::size_t fixed_bytes() const noexcept { return static_cast<std::size_t>(geometry[3]); }

  // Throws std::invalid_argument where a table points outside an entry or page.
  void check() const;
};

// A window of records, batch after batch.
struct Window {
  Numbers ids;
  Numbers batch_ends;
  Numbers lay;  // reads x 2: output, row in `shift` or -1
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
