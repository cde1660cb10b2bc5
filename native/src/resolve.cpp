#include "shufflestore/resolve.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

namespace shufflestore {
namespace {

constexpr int kBits = 0, kOffsets = 1, kValues = 2, kBoolBits = 3;  // Role in format/schema.py
constexpr std::uint64_t kAbsent = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint8_t kAllValid = 255;
constexpr std::uint64_t kSane = std::uint64_t{1} << 62;  // no file is longer, no sum of three of these wraps

template <class T>
T load(const std::uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Page {
  const std::uint8_t* head;
  const std::uint8_t* entry;
  const std::uint8_t* next;
  std::uint64_t row;  // in its chunk
};

// False if the record's page or entry lies outside what there is.
bool find(std::span<const std::uint8_t> arena, std::int64_t page, std::int64_t slot,
          std::span<const std::int64_t> geometry, Page& out) {
  const auto head = geometry[0], entry = geometry[1], size = geometry[2];
  if (page < 0 || static_cast<std::uint64_t>(page + size) > arena.size()) return false;
  out.head = arena.data() + page;
  const auto rows = load<std::uint32_t>(out.head + 16);
  if (slot < 0 || slot >= static_cast<std::int64_t>(rows) || head + (slot + 2) * entry > size) return false;
  out.entry = out.head + head + slot * entry;
  out.next = out.entry + entry;
  out.row = load<std::uint64_t>(out.head + 8) + static_cast<std::uint64_t>(slot);
  return true;
}

bool is_null(const Page& page, std::span<const std::int64_t> nulls, std::int64_t first, std::int64_t count) {
  for (std::int64_t i = first; i < first + count; ++i) {
    const auto bit = nulls[static_cast<std::size_t>(i)];
    if (!((page.entry[bit >> 3] >> (bit & 7)) & 1)) return true;
  }
  return false;
}

struct Range {
  std::uint64_t first;
  std::uint64_t count;
};

// The bytes of one buffer that one record reads.
bool range(const std::int64_t* read, const Page& page, const LocateTables& tables, const Range& elements,
           std::size_t at, const Located& out) {
  const auto factor = static_cast<std::uint64_t>(read[1]), width = static_cast<std::uint64_t>(read[3]);
  const auto role = static_cast<int>(read[2]);
  std::uint64_t first = 0, count = 0;
  if (__builtin_mul_overflow(elements.first, factor, &first) || first > kSane / 8 ||
      __builtin_mul_overflow(elements.count, factor, &count) || count > kSane / 8)
    return false;
  const bool null = is_null(page, tables.nulls, read[6], read[7]);
  std::uint64_t lo = 0, size = 0;
  std::uint8_t shift = 0;
  if (count > 0) {
    if (role == kOffsets || role == kValues) {
      lo = first * width;
      size = (count + (role == kOffsets ? 1 : 0)) * width;
    } else {
      lo = first / 8;
      shift = static_cast<std::uint8_t>(first % 8);
      size = (shift + count + 7) / 8;
    }
  }
  const auto base = read[4] >= 0 ? load<std::uint64_t>(page.head + read[4]) : kAbsent;
  out.slot[at] = size;
  if (base == kAbsent && role == kBits) {
    out.slot[at] = 0;
    shift = kAllValid;
  }
  const bool reads = !null && base != kAbsent;
  if (reads && base > kSane) return false;
  out.offset[at] = reads ? base + lo : 0;
  out.size[at] = reads ? size : 0;
  out.crc[at] = reads && read[5] >= 0 ? load<std::uint32_t>(page.entry + read[5]) : 0;
  out.shift[at] = null && shift != kAllValid ? 0 : shift;
  return true;
}

void check(const LocateTables& t) {
  const auto head = t.geometry[0], entry = t.geometry[1];
  const auto fail = [](const char* what) { throw std::invalid_argument(what); };
  const auto beyond = [](std::int64_t at, std::int64_t last) {
    return at >= 0 && at > last;
  };  // -1: not there
  if (head < 24 || entry < 1 || t.geometry[2] < head) fail("locate: geometry of a page makes no sense");
  for (std::size_t i = 0; i < t.levels.size(); i += 4)
    if (beyond(t.levels[i], entry - 4) || beyond(t.levels[i + 1], head - 8))
      fail("locate: a level stands outside its entry");
  const auto level_count = static_cast<std::int64_t>(t.levels.size() / 4);
  const auto null_count = static_cast<std::int64_t>(t.nulls.size());
  const auto names_nulls = [&](const std::int64_t* at) {
    return at[0] >= 0 && at[1] >= 0 && at[0] <= null_count && at[1] <= null_count - at[0];
  };
  for (std::size_t i = 0; i < t.levels.size(); i += 4)
    if (!names_nulls(t.levels.data() + i + 2)) fail("locate: a level names null bits that do not exist");
  for (std::size_t i = 0; i < t.reads.size(); i += 8)
    if (t.reads[i] >= level_count || !names_nulls(t.reads.data() + i + 6))
      fail("locate: a read names a level or null bits that do not exist");
  for (std::size_t i = 0; i < t.reads.size(); i += 8)
    if (beyond(t.reads[i + 4], head - 8) || beyond(t.reads[i + 5], entry - 4))
      fail("locate: a read stands outside its entry");
  for (std::size_t i = 0; i < t.copies.size(); i += 3)
    if (t.copies[i] < 0 || t.copies[i] + t.copies[i + 2] > entry || t.copies[i + 1] < 0 ||
        t.copies[i + 1] + t.copies[i + 2] > t.geometry[3])
      fail("locate: a copied value stands outside its entry");
  for (auto bit : t.nulls)
    if (bit < 0 || bit >= 8 * entry) fail("locate: a null bit stands outside its entry");
  for (std::size_t i = 0; i < t.bits.size(); i += 2)
    if (t.bits[i] >= 8 * entry) fail("locate: a bit stands outside its entry");
}

bool locate_one(const Page& page, const LocateTables& t, std::size_t row, const Located& out, Range* levels) {
  const auto level_count = t.levels.size() / 4, read_count = t.reads.size() / 8;
  for (std::size_t i = 0; i < level_count; ++i) {
    const auto* level = t.levels.data() + 4 * i;
    levels[i] = {0, 0};
    if (level[0] >= 0) {
      const auto start = load<std::uint32_t>(page.entry + level[0]);
      const auto stop = load<std::uint32_t>(page.next + level[0]);
      const auto base = load<std::uint64_t>(page.head + level[1]);
      if (stop < start || base > kSane) return false;
      levels[i] = {base + start, is_null(page, t.nulls, level[2], level[3]) ? 0 : stop - start};
    }
    out.counts[row * level_count + i] = static_cast<std::int64_t>(levels[i].count);
  }
  for (std::size_t i = 0; i < read_count; ++i) {
    const auto* read = t.reads.data() + 8 * i;
    const Range elements = read[0] < 0 ? Range{page.row, 1} : levels[read[0]];
    if (!range(read, page, t, elements, row * read_count + i, out)) return false;
  }
  const auto bit_count = t.bits.size() / 2;
  for (std::size_t i = 0; i < bit_count; ++i) {
    const auto bit = t.bits[2 * i];
    out.bits[row * bit_count + i] = bit < 0
                                        ? static_cast<std::uint8_t>(t.bits[2 * i + 1])
                                        : static_cast<std::uint8_t>((page.entry[bit >> 3] >> (bit & 7)) & 1);
  }
  const auto fixed_bytes = static_cast<std::size_t>(t.geometry[3]);
  for (std::size_t i = 0; i < t.copies.size(); i += 3)
    std::memcpy(out.fixed + row * fixed_bytes + t.copies[i + 1], page.entry + t.copies[i],
                static_cast<std::size_t>(t.copies[i + 2]));
  return true;
}

}  // namespace

std::int64_t locate(std::span<const std::uint8_t> arena, std::span<const std::int64_t> pages,
                    std::span<const std::int64_t> slots, std::span<const std::int64_t> rows,
                    const LocateTables& tables, const Located& out) {
  check(tables);
  constexpr std::size_t kAhead =
      12;  // entries are anywhere in a large arena: ask for them before they are needed
  std::vector<Range> levels(tables.levels.size() / 4);
  const auto missing = std::any_of(rows.begin(), rows.end(), [&](auto row) {
    return row < 0 || static_cast<std::size_t>(row) >= out.rows;
  });
  if (missing) throw std::invalid_argument("locate: a row lies outside the output");
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (i + kAhead < pages.size()) {
      const auto ahead = pages[i + kAhead];
      if (ahead >= 0 && static_cast<std::size_t>(ahead) < arena.size()) {
        const auto entry = ahead + tables.geometry[0] + slots[i + kAhead] * tables.geometry[1];
        __builtin_prefetch(arena.data() + ahead);
        __builtin_prefetch(arena.data() + entry);
        __builtin_prefetch(arena.data() + entry + 63);
      }
    }
    Page page;
    if (!find(arena, pages[i], slots[i], tables.geometry, page) ||
        !locate_one(page, tables, static_cast<std::size_t>(rows[i]), out, levels.data()))
      return static_cast<std::int64_t>(i);
  }
  return -1;
}

void lay_out(const LayOut& job) {
  constexpr std::uint64_t kAlign = 64;
  const std::size_t width = job.lay.size() / 3;
  const std::size_t outputs = job.batch_ends.empty() ? 0 : job.output_sizes.size() / job.batch_ends.size();
  std::uint64_t* next = job.reads.data();
  std::uint64_t* const end = next + job.reads.size();
  std::size_t first = 0;
  for (std::size_t b = 0; b < job.batch_ends.size(); ++b) {
    const auto last = static_cast<std::size_t>(job.batch_ends[b]);
    if (last < first || last > job.files.size())
      throw std::invalid_argument("lay_out: batch ends must not decrease");
    for (std::size_t r = 0; r < width; ++r) {
      const auto output = static_cast<std::uint64_t>(job.lay[3 * r]);
      const auto op = static_cast<std::uint64_t>(job.lay[3 * r + 1]);
      const auto ratio = static_cast<std::uint64_t>(job.lay[3 * r + 2]);
      if (output >= outputs)
        throw std::invalid_argument("lay_out: a read names an output that does not exist");
      auto& total = job.output_sizes[b * outputs + output];
      total = (total + kAlign - 1) / kAlign * kAlign;
      const auto start = total;
      for (std::size_t i = first; i < last; ++i) {
        const auto at = i * width + r;
        if (job.slot[at] == 0) continue;
        if (next == end) throw std::invalid_argument("lay_out: more reads than were counted");
        const bool zero = job.size[at] == 0;
        const auto flags = static_cast<std::uint64_t>(job.verify && !zero);
        next[0] = job.offset[at];
        next[1] = total;
        next[2] = zero ? job.slot[at] * ratio : job.size[at];
        next[3] = job.files[i] | static_cast<std::uint64_t>(job.crc[at]) << 32;
        next[4] =
            output | (zero ? 1U : op) << 16 | flags << 24 | static_cast<std::uint64_t>(i & 0xFFFFFFFF) << 32;
        next += 5;
        if (__builtin_add_overflow(total, job.slot[at] * ratio, &total))
          throw std::invalid_argument("lay_out: too large");
      }
      job.regions[(b * width + r) * 2] = static_cast<std::int64_t>(start);
      job.regions[(b * width + r) * 2 + 1] = static_cast<std::int64_t>(total - start);
    }
    job.ends[b] = static_cast<std::uint64_t>(next - job.reads.data()) / 5;
    first = last;
  }
  if (next != end) throw std::invalid_argument("lay_out: fewer reads than were counted");
}

}  // namespace shufflestore
