#include "shufflestore/locate.hpp"

#include <cstring>
#include <limits>

namespace shufflestore {
namespace {

constexpr int kBits = 0, kOffsets = 1, kValues = 2;  // Role in format/schema.py; 3: values of one bit
constexpr std::uint64_t kAbsent = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kSane = std::uint64_t{1} << 62;  // no file is longer, no sum of three of these wraps

template <class T>
T load(const std::uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

Entry locate(const Arena& arena, const Table& geometry, std::int64_t page, std::int64_t entry) noexcept {
  const auto head = geometry[0], bytes = geometry[1], size = geometry[2];
  static constexpr std::uint8_t kNowhere = 0;
  Entry found{.head = &kNowhere, .at = nullptr, .number = entry};
  if (page < 0 || static_cast<std::size_t>(page) >= arena.slot_of.size()) return found;
  const std::int64_t slot = arena.slot_of[static_cast<std::size_t>(page)];
  if (slot == 0) return {.head = nullptr, .at = nullptr, .number = entry};
  const auto begin = (slot - 1) * arena.slot_bytes;
  if (begin < 0 || static_cast<std::uint64_t>(begin + size) > arena.data.size()) return found;
  if (entry < 0 || entry >= size || head + (entry + 2) * bytes > size) return found;
  found.head = arena.data.data() + begin;
  found.at = found.head + head + entry * bytes;
  __builtin_prefetch(found.head);
  __builtin_prefetch(found.at);
  __builtin_prefetch(found.at + 2 * bytes - 1);  // the next one says where this one's ranges end
  return found;
}

Locator::Locator(const Program& program, const Window& window, Located& located, Resolved& out,
                 std::size_t first)
    : program_(program),
      window_(window),
      located_(located),
      out_(out),
      first_(first),
      stride_(window.ids.size()),
      ranges_(program.level_count() * kBlock) {}

std::int64_t Locator::run(const std::uint32_t* rows, std::size_t count) {
  rows_ = rows;
  std::int64_t found = kFound;
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const auto answer = block(begin, std::min(kBlock, count - begin));
    if (answer >= 0) return static_cast<std::int64_t>(row(static_cast<std::size_t>(answer)));
    if (answer == kPageMissing) found = kPageMissing;
  }
  return found;
}

std::int64_t Locator::block(std::size_t begin, std::size_t count) {
  begin_ = begin;
  bad_ = count;
  bool is_missing = false;
  for (std::size_t k = 0; k < count && bad_ == count; ++k) {
    const Entry& entry = located_.entry[row(k)];
    if (entry.head == nullptr) {
      is_missing = true;
    } else if (!open(entry, entries_[k])) {
      note(k);
    }
  }
  count_ = bad_;
  if (is_missing) return bad_ < count ? static_cast<std::int64_t>(bad_) : kPageMissing;
  for (std::size_t i = 0; i < program_.level_count(); ++i) level(i);
  for (std::size_t i = 0; i < program_.read_count(); ++i) read(i);
  for (std::size_t i = 0; i < program_.bit_count(); ++i) bit(i);
  for (std::size_t i = 0; i < program_.copies.size(); i += 3) copy(program_.copies.data() + i);
  return bad_ < count ? static_cast<std::int64_t>(bad_) : kFound;
}

// Gives each record of the block its number in a row of numbers.
template <class T, class Value>
void Locator::put(T* to, Value value) const {
  if (rows_ == nullptr) {
    for (std::size_t k = 0; k < count_; ++k) to[begin_ + k] = value(k);
  } else {
    for (std::size_t k = 0; k < count_; ++k) to[rows_[begin_ + k]] = value(k);
  }
}

// False if the entry lies outside what there is.
bool Locator::open(const Entry& entry, Record& out) const {
  if (entry.at == nullptr || entry.number >= load<std::uint32_t>(entry.head + 16)) return false;
  out = {.head = entry.head,
         .at = entry.at,
         .next = entry.at + program_.geometry[1],
         .row = load<std::uint64_t>(entry.head + 8) + static_cast<std::uint64_t>(entry.number)};
  return true;
}

// Which records are null where one of these bits is 0; null itself if there are no such bits.
const std::uint8_t* Locator::nulls(const std::int64_t* named) {
  if (named[1] == 0) return nullptr;
  nulls_.fill(0);
  for (auto i = named[0]; i < named[0] + named[1]; ++i) {
    const auto bit = program_.nulls[static_cast<std::size_t>(i)];
    for (std::size_t k = 0; k < count_; ++k)
      nulls_[k] |= static_cast<std::uint8_t>(~(entries_[k].at[bit >> 3] >> (bit & 7)) & 1);
  }
  return nulls_.data();
}

void Locator::level(std::size_t number) {
  const auto* const table = program_.levels.data() + 4 * number;
  const auto start_at = table[0], base_at = table[1];
  Range* const ranges = ranges_.data() + kBlock * number;
  const auto* const is_null = nulls(table + 2);
  for (std::size_t k = 0; k < count_; ++k) {
    ranges[k] = {0, 0};
    if (start_at < 0) continue;
    const auto start = load<std::uint32_t>(entries_[k].at + start_at);
    const auto stop = load<std::uint32_t>(entries_[k].next + start_at);
    const auto base = load<std::uint64_t>(entries_[k].head + base_at);
    if (stop < start || base > kSane) note(k);
    ranges[k] = {base + start, std::uint64_t{stop} - start};
  }
  if (is_null != nullptr)
    for (std::size_t k = 0; k < count_; ++k) ranges[k].count *= is_null[k] ^ 1U;
  put(out_.counts.data() + number * stride_ + first_,
      [=](auto k) { return static_cast<std::int64_t>(ranges[k].count); });
}

// The bytes of one buffer that each record reads. Row by row, so that no store can be taken for one to what
// the next record needs.
void Locator::read(std::size_t number) {
  const auto* const table = program_.reads.data() + 10 * number;
  const auto role = static_cast<int>(table[2]);
  const auto base_at = table[4], crc_at = table[5];
  const auto op = static_cast<std::uint8_t>(table[8]);
  const auto ratio = static_cast<std::uint64_t>(table[9]);  // bytes delivered for a byte read
  const auto shift_row = window_.lay[2 * number + 1];
  auto* const shift =
      shift_row < 0 ? nullptr : out_.shift.data() + static_cast<std::size_t>(shift_row) * stride_ + first_;
  const auto at = number * located_.records;
  if (base_at < 0 && role == kBits) {  // every bit is one
    put(located_.slot.data() + at, [](auto) { return 0; });
    if (shift != nullptr) put(shift, [](auto) { return kAllValid; });
    return;
  }
  const auto* const is_null = nulls(table + 6);
  std::array<Extent, kBlock> extents;
  for (std::size_t k = 0; k < count_; ++k) {
    const Range elements =
        table[0] < 0 ? Range{entries_[k].row, 1} : ranges_[static_cast<std::size_t>(table[0]) * kBlock + k];
    if (!extent(table, elements, extents[k])) note(k);
    const auto base = base_at < 0 ? kAbsent : load<std::uint64_t>(entries_[k].head + base_at);
    extents[k].base = base;
    if (is_null != nullptr && is_null[k] != 0) extents[k].base = kAbsent;
    if (base == kAbsent && role == kBits) {
      extents[k].shift = kAllValid;
      extents[k].size = 0;
    }
    if (extents[k].base != kAbsent && base > kSane) note(k);
  }
  const auto is_read = [&](auto k) { return extents[k].base != kAbsent; };
  put(located_.op.data() + at, [=](auto) { return op; });
  put(located_.slot.data() + at, [&](auto k) { return extents[k].size * ratio; });
  put(located_.size.data() + at, [&](auto k) { return is_read(k) ? extents[k].size : 0; });
  put(located_.offset.data() + at, [&](auto k) { return is_read(k) ? extents[k].base + extents[k].low : 0; });
  if (shift != nullptr) put(shift, [&](auto k) { return extents[k].shift; });
  if (crc_at < 0) {
    put(located_.crc.data() + at, [](auto) { return 0; });
  } else {
    put(located_.crc.data() + at,
        [&](auto k) { return is_read(k) ? load<std::uint32_t>(entries_[k].at + crc_at) : 0; });
  }
}

// First byte, bytes and first bit of some elements in their buffer. False if no file is as long.
bool Locator::extent(const std::int64_t* table, const Range& elements, Extent& out) {
  const auto factor = static_cast<std::uint64_t>(table[1]), width = static_cast<std::uint64_t>(table[3]);
  const auto role = static_cast<int>(table[2]);
  std::uint64_t first = 0, count = 0;
  out = {};
  if (__builtin_mul_overflow(elements.first, factor, &first) || first > kSane / 8 ||
      __builtin_mul_overflow(elements.count, factor, &count) || count > kSane / 8)
    return false;
  if (count == 0) return true;
  if (role == kOffsets || role == kValues) {
    out.low = first * width;
    out.size = (count + (role == kOffsets ? 1 : 0)) * width;
  } else {
    out.low = first / 8;
    out.shift = static_cast<std::uint8_t>(first % 8);
    out.size = (out.shift + count + 7) / 8;
  }
  return true;
}

void Locator::bit(std::size_t number) {
  const auto bit = program_.bits[2 * number];
  const auto otherwise = static_cast<std::uint8_t>(program_.bits[2 * number + 1]);
  auto* const to = out_.bits.data() + number * stride_ + first_;
  if (bit < 0) {
    put(to, [=](auto) { return otherwise; });
  } else {
    put(to, [&](auto k) { return static_cast<std::uint8_t>((entries_[k].at[bit >> 3] >> (bit & 7)) & 1); });
  }
}

void Locator::copy(const std::int64_t* table) {
  const auto from = table[0];
  const auto width = static_cast<std::size_t>(table[2]);
  auto* const to =
      out_.fixed.data() + static_cast<std::size_t>(table[1]) * ((stride_ + 7) / 8 * 8) + first_ * width;
  // Blocks begin at multiples of eight, so numbers of the usual widths are aligned.
  switch (width) {
    case 8:
      return put(reinterpret_cast<std::uint64_t*>(to),
                 [&](auto k) { return load<std::uint64_t>(entries_[k].at + from); });
    case 4:
      return put(reinterpret_cast<std::uint32_t*>(to),
                 [&](auto k) { return load<std::uint32_t>(entries_[k].at + from); });
    default:
      for (std::size_t k = 0; k < count_; ++k) std::memcpy(to + row(k) * width, entries_[k].at + from, width);
  }
}

}  // namespace shufflestore
