// The ranges of a batch of records, before they have slots: a step of resolve().
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "shufflestore/resolve.hpp"

namespace shufflestore {

inline constexpr std::size_t kBlock = 64;  // records that are taken through each step together

// An entry of a page that is in the arena.
struct Entry {
  const std::uint8_t* head;  // of its page; null where the page is not there
  const std::uint8_t* at;    // null where the page or the entry lies outside what there is
  std::int64_t number;       // in its page
};

// Says where an entry is, and fetches the lines that it stands in, without looking at them.
Entry locate(const Arena& arena, const Table& geometry, std::int64_t page, std::int64_t entry) noexcept;

// One batch, between its ids and its reads; reused from batch to batch. A row of `records` numbers a read.
struct Located {
  std::vector<Entry> entry;
  std::vector<std::uint32_t> file, layout;
  std::vector<std::uint64_t> offset, size, slot;  // size 0: none is read; slot 0: nothing is put
  std::vector<std::uint32_t> crc;
  std::vector<std::uint8_t> op;
  std::size_t records = 0;

  void resize(std::size_t reads, std::size_t count) {
    records = count;
    const auto grow = [](auto& row, std::size_t size) { row.resize(std::max(row.size(), size)); };
    for (auto* row : {&file, &layout}) grow(*row, count);
    for (auto* row : {&offset, &size, &slot}) grow(*row, reads * count);
    grow(crc, reads * count);
    grow(op, reads * count);
    grow(entry, count);
  }
};

// Takes records of one layout, a block at a time, through one step after another: each is a plain loop over
// one row of numbers.
class Locator {
 public:
  // Record i of the batch is record `first` + i of the window.
  Locator(const Program& program, const Window& window, Located& located, Resolved& out, std::size_t first);

  // Does the records `rows` of the batch, [0, count) if that is null. Returns kFound, kPageMissing, or which
  // record of the batch contradicts itself.
  std::int64_t run(const std::uint32_t* rows, std::size_t count);

 private:
  struct Record {
    const std::uint8_t* head;  // of its page
    const std::uint8_t* at;    // its entry
    const std::uint8_t* next;
    std::uint64_t row;  // in its chunk
  };
  struct Range {
    std::uint64_t first;
    std::uint64_t count;
  };
  struct Extent {
    std::uint64_t base;  // of the buffer in the file; kAbsent where nothing is read
    std::uint64_t low;   // first byte in the buffer
    std::uint64_t size;
    std::uint8_t shift;
  };

  std::size_t row(std::size_t k) const { return rows_ == nullptr ? begin_ + k : rows_[begin_ + k]; }
  void note(std::size_t k) { bad_ = std::min(bad_, k); }
  template <class T, class Value>
  void put(T* to, Value value) const;

  std::int64_t block(std::size_t begin, std::size_t count);
  bool open(const Entry& entry, Record& out) const;
  const std::uint8_t* nulls(const std::int64_t* named);
  void level(std::size_t number);
  void read(std::size_t number);
  static bool extent(const std::int64_t* table, const Range& elements, Extent& out);
  void bit(std::size_t number);
  void copy(const std::int64_t* table);

  const Program& program_;
  const Window& window_;
  Located& located_;
  Resolved& out_;
  const std::size_t first_;
  const std::size_t stride_;  // records of the window
  const std::uint32_t* rows_ = nullptr;
  std::size_t begin_ = 0;  // of the block
  std::size_t count_ = 0;  // of the block, up to the first bad one
  std::size_t bad_ = 0;
  std::array<Record, kBlock> entries_{};
  std::array<std::uint8_t, kBlock> nulls_{};
  std::vector<Range> ranges_;  // levels x kBlock
};

}  // namespace shufflestore
