#include "shufflestore/place.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "shufflestore/crc32c.hpp"
#include "shufflestore/validate.hpp"
#include "shufflestore/widen.hpp"

namespace shufflestore {
namespace {

constexpr std::size_t kAnyFile = std::size_t{std::numeric_limits<std::uint32_t>::max()} + 1;
constexpr std::size_t kStage = 16 << 10;  // hashed and then widened while still in the first cache

bool is_within(const Read& read, std::uint64_t data_offset, std::size_t data_size) {
  if (read.op == kZero || read.size == 0) return true;
  if (read.offset < data_offset) return false;
  const std::uint64_t begin = read.offset - data_offset;
  return begin <= data_size && read.size <= data_size - begin;
}

void check_data(std::span<const std::uint8_t> data, std::uint64_t data_offset, std::span<const Read> reads,
                std::span<const std::span<std::uint8_t>> outputs) {
  for (std::size_t i = 0; i < reads.size(); ++i) {
    if (is_within(reads[i], data_offset, data.size())) continue;
    throw std::invalid_argument("read " + std::to_string(i) + ": file bytes [" +
                                std::to_string(reads[i].offset) + ", " + std::to_string(reads[i].offset) +
                                " + " + std::to_string(reads[i].size) + ") are not all in the data, [" +
                                std::to_string(data_offset) + ", " + std::to_string(data_offset) + " + " +
                                std::to_string(data.size()) + ")");
  }
  const std::less<const std::uint8_t*> is_before;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (data.empty() || outputs[i].empty()) continue;
    if (is_before(outputs[i].data(), data.data() + data.size()) &&
        is_before(data.data(), outputs[i].data() + outputs[i].size())) {
      throw std::invalid_argument("output " + std::to_string(i) + " shares memory with the data");
    }
  }
}

// Returns the CRC of the bytes that were read, 0 where nobody asks.
std::uint32_t widen_into(std::uint8_t* to, const std::uint8_t* from, const Read& read) noexcept {
  const Widening& widen = widening(read.op);
  std::uint32_t crc = 0;
  for (std::size_t done = 0; done < read.size; done += kStage) {
    const std::size_t some = std::min<std::size_t>(kStage, read.size - done);
    if (read.has_crc()) crc = crc32c(from + done, some, crc);
    widen.run(to + done / widen.source * widen.target, from + done, some / widen.source);
  }
  return crc;
}

std::uint32_t fill(std::uint8_t* to, const std::uint8_t* from, const Read& read) noexcept {
  if (read.op != kCopy) return widen_into(to, from, read);
  if (read.has_crc()) return copy_crc32c(to, from, read.size);
  std::memcpy(to, from, read.size);
  return 0;
}

}  // namespace

std::optional<Misplaced> place(std::span<const std::uint8_t> data, std::uint64_t data_offset,
                               std::span<const Read> reads,
                               std::span<const std::span<std::uint8_t>> outputs) {
  const std::vector<Read> own(reads.begin(), reads.end());
  std::vector<std::uint64_t> sizes;
  sizes.reserve(outputs.size());
  for (const std::span<std::uint8_t> output : outputs) sizes.push_back(output.size());
  const std::uint64_t end = own.size();
  validate({.reads = own,
            .ends = std::span(&end, 1),
            .output_sizes = sizes,
            .outputs_per_batch = outputs.size(),
            .file_count = kAnyFile});
  check_data(data, data_offset, own, outputs);
  for (std::size_t i = 0; i < own.size(); ++i) {
    const Read& read = own[i];
    std::uint32_t found = 0;  // of no bytes, too
    if (read.size != 0) {
      std::uint8_t* const to = outputs[read.output].data() + read.slot;
      if (read.op == kZero) {
        std::memset(to, 0, read.size);
      } else {
        found = fill(to, data.data() + (read.offset - data_offset), read);
      }
    }
    if (read.op != kZero && read.has_crc() && found != read.crc) return Misplaced{.index = i, .found = found};
  }
  return std::nullopt;
}

}  // namespace shufflestore
