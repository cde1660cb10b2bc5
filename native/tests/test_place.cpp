#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "check.hpp"
#include "scene.hpp"
#include "shufflestore/place.hpp"

using namespace scene;

namespace {

constexpr std::uint64_t kFrom = 1000;  // where the data begin in their file
constexpr std::uint8_t kU2ToI8 = 37;
constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

// Two outputs in blocks of exactly their size, so that a sanitizer sees a step outside.
struct Outputs {
  Bytes first = Bytes(64, 0xAA), second = Bytes(400, 0xAA);
  std::optional<Misplaced> place(const Bytes& data, const std::vector<Read>& reads,
                                 std::uint64_t from = kFrom) {
    const std::span<std::uint8_t> both[] = {first, second};
    return shufflestore::place(data, from, reads, both);
  }
  bool is_untouched() const {
    const auto is_old = [](std::uint8_t byte) { return byte == 0xAA; };
    return std::all_of(first.begin(), first.end(), is_old) &&
           std::all_of(second.begin(), second.end(), is_old);
  }
};

Read in_data(std::uint64_t at, std::uint64_t slot, std::uint64_t size, const Bytes& data) {
  Read read = checked(copy_read(at, slot, size), data);
  read.offset += kFrom;
  return read;
}

}  // namespace

TEST(copies_widens_and_zeros_where_the_slots_are) {
  const Bytes data = noise(100);
  Outputs out;
  Read wide = in_data(10, 3, 80, data);
  wide.output = 1, wide.op = kU2ToI8;
  Read zero = copy_read(0, 60, 4);
  zero.op = kZero;
  CHECK(!out.place(data, {in_data(0, 5, 50, data), wide, zero}).has_value());
  CHECK(std::memcmp(out.first.data() + 5, data.data(), 50) == 0);
  for (std::size_t i = 0; i < 40; ++i) {
    std::int64_t value;
    std::memcpy(&value, out.second.data() + 3 + 8 * i, 8);
    CHECK(value == data[10 + 2 * i] + 256 * data[11 + 2 * i]);
  }
  CHECK(out.first[60] == 0 && out.first[63] == 0 && out.first[59] == 0xAA && out.first[4] == 0xAA);
  CHECK(out.second[2] == 0xAA && out.second[323] == 0xAA);
}

TEST(widens_and_checks_across_stages) {
  const Bytes data = noise(70002);
  for (const std::uint64_t size : {16382u, 16384u, 16386u, 70002u}) {
    Bytes output(size * 4);
    const std::span<std::uint8_t> one[] = {output};
    Read read = in_data(0, 0, size, data);
    read.op = kU2ToI8;
    CHECK(!place(data, kFrom, std::span(&read, 1), one).has_value());
    for (std::size_t i = 0; i < size / 2; ++i) {
      std::int64_t value;
      std::memcpy(&value, output.data() + 8 * i, 8);
      CHECK(value == data[2 * i] + 256 * data[2 * i + 1]);
    }
  }
}

TEST(names_the_first_read_with_another_checksum_and_goes_no_further) {
  const Bytes data = noise(100);
  Outputs out;
  std::vector<Read> reads = {in_data(0, 0, 10, data), in_data(10, 10, 10, data), in_data(20, 20, 10, data)};
  reads[1].crc ^= 1, reads[2].crc ^= 1;
  const auto wrong = out.place(data, reads);
  CHECK(wrong.has_value() && wrong->index == 1 && wrong->found == (reads[1].crc ^ 1));
  CHECK(std::memcmp(out.first.data(), data.data(), 10) == 0 && out.first[20] == 0xAA);
  reads[1].flags = reads[2].flags = 0;
  CHECK(!out.place(data, reads).has_value());
}

TEST(empty_reads_need_no_data) {
  Outputs out;
  Read empty = copy_read(5, 64, 0);
  empty.flags = kHasCrc;  // the checksum of nothing is 0
  CHECK(!out.place({}, {empty}).has_value() && !out.place({}, {}).has_value() && out.is_untouched());
  empty.crc = 7;
  CHECK(out.place({}, {empty})->found == 0);
}

TEST(refuses_every_wild_read_before_a_byte_moves) {
  const Bytes data = noise(100);
  const Read good = in_data(0, 0, 10, data);
  std::vector<Read> bad(16, good);
  bad[0].offset = kFrom - 1;
  bad[1].offset = kFrom + 91;
  bad[2].offset = 0;
  bad[3].offset = kMost;
  bad[4].size = 101;
  bad[5].size = kMost;
  bad[6].size = kMost - kFrom;
  bad[7].slot = 55;
  bad[8].slot = kMost;
  bad[9].slot = kMost - 5;
  bad[10].output = 2;
  bad[11].op = 255;
  bad[12].op = kU2ToI8, bad[12].size = 9;
  bad[13].op = kU2ToI8, bad[13].slot = 25;
  bad[14].flags = 2;
  bad[15].op = kZero, bad[15].size = kMost;
  for (const Read& one : bad) {
    Outputs out;
    CHECK(check::throws<std::invalid_argument>([&] { out.place(data, {good, one}); }));
    CHECK(out.is_untouched());
  }
}

TEST(data_may_stand_at_the_end_of_the_largest_file) {
  const Bytes data = noise(100);
  constexpr std::uint64_t kEnd = std::numeric_limits<std::int64_t>::max();
  Outputs out;
  Read read = checked(copy_read(0, 0, 64), data);
  read.offset = kEnd - 100;
  CHECK(!out.place(data, {read}, kEnd - 100).has_value());
  CHECK(std::memcmp(out.first.data(), data.data(), 64) == 0);
  // No sum of the data's own range is formed.
  CHECK(check::throws<std::invalid_argument>([&] { out.place(data, {read}, kMost); }));
}

TEST(refuses_outputs_that_are_the_data) {
  Bytes data = noise(100);
  const Read read = in_data(0, 0, 10, data);
  const std::span<std::uint8_t> same[] = {std::span(data).subspan(99)};
  CHECK(check::throws<std::invalid_argument>([&] { place(data, kFrom, std::span(&read, 1), same); }));
  const std::span<std::uint8_t> beside[] = {std::span(data).subspan(50)};
  CHECK(!place(std::span(data).first(50), kFrom, std::span(&read, 1), beside).has_value());
  CHECK(std::memcmp(data.data() + 50, data.data(), 10) == 0);
}
