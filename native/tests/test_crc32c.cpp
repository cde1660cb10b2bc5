#include <algorithm>

#include "check.hpp"
#include "scene.hpp"
#include "shufflestore/spans.hpp"

using namespace scene;

namespace {

// The definition, bit by bit.
std::uint32_t naive(const std::uint8_t* data, std::size_t size, std::uint32_t seed) {
  std::uint32_t state = ~seed;
  for (std::size_t i = 0; i < size; ++i) {
    state ^= data[i];
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) != 0 ? 0x82F63B78u : 0u);
  }
  return ~state;
}

}  // namespace

TEST(the_known_answer_comes_out) {
  CHECK(crc32c("123456789", 9) == 0xE3069283u);
  CHECK(crc32c("", 0) == 0);
  CHECK(crc32c("6789", 4, crc32c("12345", 5)) == 0xE3069283u);
}

TEST(every_kernel_agrees_with_the_definition_at_every_length) {
  const Bytes data = noise(2200);
  Bytes copy(2400);
  for (const Crc32cKernel& kernel : crc32c_kernels()) {
    if (!kernel.available()) continue;
    for (std::size_t size = 0; size <= 2000; ++size) {
      const std::size_t at = size % 67;
      const auto seed = static_cast<std::uint32_t>(size * 2654435761u);
      const std::uint32_t expected = naive(data.data() + at, size, seed);
      CHECK(~kernel.hash(data.data() + at, size, ~seed) == expected);
      std::fill(copy.begin(), copy.end(), std::uint8_t{0xAA});
      const std::size_t to = size % 61 + 1;
      CHECK(~kernel.copy(copy.data() + to, data.data() + at, size, ~seed) == expected);
      CHECK(std::equal(data.begin() + static_cast<long>(at), data.begin() + static_cast<long>(at + size),
                       copy.begin() + static_cast<long>(to)));
      CHECK(copy[to - 1] == 0xAA && copy[to + size] == 0xAA);
    }
  }
}

TEST(every_kernel_agrees_with_the_portable_one_at_every_alignment_and_on_long_input) {
  const Bytes data = noise(300000, 7);
  const Crc32cKernel& portable = crc32c_kernels().back();
  CHECK(portable.name == "portable");
  for (const Crc32cKernel& kernel : crc32c_kernels()) {
    if (!kernel.available()) continue;
    std::printf("  %.*s\n", static_cast<int>(kernel.name.size()), kernel.name.data());
    for (std::size_t at = 0; at < 64; ++at) {
      for (const std::size_t size :
           {63u, 64u, 65u, 127u, 191u, 192u, 255u, 256u, 257u, 511u, 1535u, 1536u, 4097u}) {
        CHECK(kernel.hash(data.data() + at, size, 0x12345678u) ==
              portable.hash(data.data() + at, size, 0x12345678u));
      }
    }
    CHECK(kernel.hash(data.data(), data.size(), ~0u) == portable.hash(data.data(), data.size(), ~0u));
  }
}

TEST(spans_are_checked_and_chained) {
  const Bytes data = noise(1000);
  const std::vector<std::uint64_t> offsets = {0, 10, 900};
  const std::vector<std::uint64_t> sizes = {10, 890, 100};
  std::vector<std::uint32_t> out(3);
  crc32c_spans(data, offsets, sizes, out);
  for (int i = 0; i < 3; ++i) CHECK(out[i] == crc32c(data.data() + offsets[i], sizes[i]));
  CHECK(crc32c_chain(data, offsets, sizes, 0) == crc32c(data.data(), data.size()));
  const std::vector<std::uint64_t> wild = {0, ~std::uint64_t{0}, 1};
  CHECK(check::throws<std::invalid_argument>([&] { crc32c_spans(data, wild, sizes, out); }));
}
