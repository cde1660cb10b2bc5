#include "shufflestore/resolve.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "shufflestore/locate.hpp"

namespace shufflestore {
namespace {

// The places of one batch; the pages' lines that the ranges stand in are on their way then. False if a shard
// is not known yet.
bool find(Finder& finder, const ShardTable& shards, const Arena& arena,
          std::span<const Program* const> programs, Numbers ids, Located& located) {
  bool is_known = true;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Place place;
    if (!finder.find(ids[i], place)) {
      is_known = false;
      continue;
    }
    const auto shard = static_cast<std::size_t>(place.shard);
    const auto layout = static_cast<std::size_t>(shards.layout[shard]);
    if (layout >= programs.size()) throw std::invalid_argument("resolve: a shard's layout has no program");
    located.entry[i] = locate(arena, programs[layout]->geometry, place.page, place.entry);
    located.file[i] = shards.files[shard];
    located.layout[i] = static_cast<std::uint32_t>(layout);
  }
  return is_known;
}

// The ranges of one batch: each layout's records together. Returns what Locator::run does.
std::int64_t locate(std::span<const Program* const> programs, const Window& window, Located& located,
                    Resolved& out, std::size_t first, std::size_t count) {
  if (programs.size() == 1) return Locator(*programs[0], window, located, out, first).run(nullptr, count);
  std::vector<std::uint32_t> rows;
  std::int64_t found = kFound;
  for (std::size_t p = 0; p < programs.size(); ++p) {
    rows.clear();
    for (std::size_t i = 0; i < count; ++i)
      if (located.layout[i] == p) rows.push_back(static_cast<std::uint32_t>(i));
    if (rows.empty()) continue;
    const auto answer = Locator(*programs[p], window, located, out, first).run(rows.data(), rows.size());
    if (answer >= 0) return answer;
    if (answer == kPageMissing) found = kPageMissing;
  }
  return found;
}

void add(std::uint64_t& total, std::uint64_t bytes) {
  if (__builtin_add_overflow(total, bytes, &total))
    throw std::invalid_argument("resolve: a batch is too large");
}

// Gives the ranges of one batch their slots: buffer after buffer, record after record.
void lay_out(const Window& window, const Located& located, Resolved& out, std::size_t batch,
             std::size_t first) {
  constexpr std::uint64_t kAlign = 64;
  const std::size_t width = window.lay.size() / 2,
                    outputs = out.output_sizes.size() / window.batch_ends.size();
  for (std::size_t r = 0; r < width; ++r) {
    const auto output = static_cast<std::uint16_t>(window.lay[2 * r]);
    auto total = out.output_sizes[batch * outputs + output];
    add(total, (kAlign - total % kAlign) % kAlign);
    const auto start = total;
    const std::size_t before = out.reads.size(), records = located.records;
    const auto *offset = located.offset.data() + r * records, *size = located.size.data() + r * records,
               *slot = located.slot.data() + r * records;
    const auto* const crc = located.crc.data() + r * records;
    const auto* const op = located.op.data() + r * records;
    out.reads.resize(before + records);
    Read* next = out.reads.data() + before;
    for (std::size_t i = 0; i < records; ++i) {
      if (slot[i] == 0) continue;
      const bool is_zero = size[i] == 0;
      *next++ = {.offset = offset[i],
                 .slot = total,
                 .size = is_zero ? slot[i] : size[i],
                 .file = located.file[i],
                 .crc = crc[i],
                 .output = output,
                 .op = is_zero ? kZero : op[i],
                 .flags = window.verify && !is_zero ? kHasCrc : std::uint8_t{0},
                 .note = static_cast<std::uint32_t>(first + i)};
      add(total, slot[i]);
    }
    out.reads.resize(static_cast<std::size_t>(next - out.reads.data()));
    out.output_sizes[batch * outputs + output] = total;
    out.regions[(batch * width + r) * 2] = static_cast<std::int64_t>(start);
    out.regions[(batch * width + r) * 2 + 1] = static_cast<std::int64_t>(total - start);
  }
  out.ends[batch] = out.reads.size();
}

// Elements before each record of one batch, and in all.
void sum_up(const Window& window, Resolved& out, std::size_t batch, std::size_t first, std::size_t last) {
  const std::size_t records = window.ids.size(), row = records + window.batch_ends.size();
  for (std::size_t l = 0; l < out.offsets.size() / row; ++l) {
    const std::int64_t* const counts = out.counts.data() + l * records;
    std::int64_t* const to = out.offsets.data() + l * row + batch;
    std::int64_t sum = 0;
    for (std::size_t i = first; i < last; ++i) {
      to[i] = sum;
      if (__builtin_add_overflow(sum, counts[i], &sum))
        throw std::invalid_argument("resolve: a batch is too large");
    }
    to[last] = sum;
  }
}

}  // namespace

Finder::Finder(const ShardTable& shards)
    : shards_(shards),
      total_(shards.first_id.back()),
      last_(std::max<std::size_t>(shards.first_id.size(), 2) - 2),
      per_id_(total_ > 0 ? static_cast<double>(last_ + 1) / static_cast<double>(total_) : 0) {}

void Finder::refuse(std::int64_t id) const {
  throw std::out_of_range("record " + std::to_string(id) + " does not exist; allowed are [0, " +
                          std::to_string(total_) + ")");
}

std::size_t Finder::search(std::int64_t id) const {
  const auto above = std::upper_bound(shards_.first_id.begin(), shards_.first_id.end(), id);
  return static_cast<std::size_t>(above - shards_.first_id.begin()) - 1;
}

void Finder::find_chunk(std::size_t shard, std::int64_t row, Place& place) const {
  const auto begin = static_cast<std::size_t>(shards_.chunks[shard]);
  const auto count = static_cast<std::size_t>(shards_.chunk_pages[shard]);
  const auto size = std::min(shards_.chunk_first_row.size(), shards_.chunk_first_page.size());
  if (begin > size || count > size - begin || count == 0 || shards_.chunk_first_row[begin] > row)
    throw std::invalid_argument("find: the chunks of a shard are not in the table");
  const auto of = shards_.chunk_first_row.subspan(begin, count);
  const auto after = std::upper_bound(of.begin(), of.end(), row);
  place.chunk = after - of.begin() - 1;
  place.row = row - *(after - 1);
  place.page = shards_.chunk_first_page[begin + static_cast<std::size_t>(place.chunk)];
}

void Program::check() const {
  const auto head = geometry[0], entry = geometry[1];
  const auto demand = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("program: ") + what);
  };
  const auto fits = [](std::int64_t at, std::int64_t last) { return at < 0 || at <= last; };  // -1: not there
  demand(head >= 24 && entry >= 1 && geometry[2] >= head && geometry[3] >= 0,
         "the geometry of a page makes no sense");
  const auto names_nulls = [&](const std::int64_t* at) {
    const auto count = static_cast<std::int64_t>(nulls.size());
    return at[0] >= 0 && at[1] >= 0 && at[0] <= count && at[1] <= count - at[0];
  };
  for (std::size_t i = 0; i < levels.size(); i += 4) {
    demand(
        fits(levels[i], entry - 4) && fits(levels[i + 1], head - 8) && (levels[i] < 0 || levels[i + 1] >= 0),
        "a level stands outside its entry");
    demand(names_nulls(levels.data() + i + 2), "a level names null bits that do not exist");
  }
  for (std::size_t i = 0; i < reads.size(); i += 10) {
    demand(reads[i] < static_cast<std::int64_t>(level_count()) && names_nulls(reads.data() + i + 6),
           "a read names a level or null bits that do not exist");
    demand(fits(reads[i + 4], head - 8) && fits(reads[i + 5], entry - 4), "a read stands outside its entry");
    demand(reads[i + 8] >= 0 && reads[i + 8] <= 255 && reads[i + 9] >= 1 && reads[i + 9] <= 8,
           "a read has no such op, or delivers more than 8 bytes for one");
  }
  for (std::size_t i = 0; i < copies.size(); i += 3)
    demand(copies[i] >= 0 && copies[i + 2] >= 0 && copies[i] + copies[i + 2] <= entry && copies[i + 1] >= 0 &&
               copies[i + 1] + copies[i + 2] <= geometry[3],
           "a copied value stands outside its entry");
  for (const auto bit : nulls) demand(bit >= 0 && bit < 8 * entry, "a null bit stands outside its entry");
  for (std::size_t i = 0; i < bits.size(); i += 2)
    demand(bits[i] < 8 * entry, "a bit stands outside its entry");
}

std::int64_t resolve(const Arena& arena, const ShardTable& shards, std::span<const Program* const> programs,
                     const Window& window, Resolved& out) {
  const std::size_t width = window.lay.size() / 2;
  Finder finder(shards);
  bool is_known = true, is_here = true;
  Located located;
  out.reads.reserve(window.ids.size() * std::min<std::size_t>(width, 4) + window.ids.size());
  std::size_t first = 0;
  for (std::size_t b = 0; b < window.batch_ends.size(); ++b) {
    const auto last = static_cast<std::size_t>(window.batch_ends[b]);
    if (last < first || last > window.ids.size())
      throw std::invalid_argument("resolve: batch ends must not decrease");
    located.resize(width, last - first);
    is_known &= find(finder, shards, arena, programs, window.ids.subspan(first, last - first), located);
    if (is_known) {
      const auto answer =
          last == first ? kFound : locate(programs, window, located, out, first, last - first);
      if (answer >= 0) return static_cast<std::int64_t>(first) + answer;
      is_here &= answer == kFound;
    }
    if (is_known && is_here) {
      lay_out(window, located, out, b, first);
      sum_up(window, out, b, first, last);
    }
    first = last;
  }
  if (first != window.ids.size())
    throw std::invalid_argument("resolve: the last batch must end with the last record");
  return is_known ? is_here ? kFound : kPageMissing : kShardMissing;
}

}  // namespace shufflestore
