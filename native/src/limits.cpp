#include "shufflestore/limits.hpp"

#include <array>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace shufflestore {
namespace {

void check_room(Offsets sizes, std::uint64_t room) {
  const std::uint64_t wanted = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
  if (wanted <= room) return;
  throw std::invalid_argument("the spans have " + std::to_string(wanted) + " bytes, but there is room for " +
                              std::to_string(room));
}

}  // namespace

void gather_limit(std::span<const std::uint8_t> data, Offsets offsets, Offsets sizes,
                  std::span<std::uint8_t> out) {
  check_spans(data.size(), offsets, sizes);
  check_room(sizes, out.size());
  std::uint8_t* to = out.data();
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    std::memcpy(to, data.data() + offsets[i], sizes[i]);
    to += sizes[i];
  }
}

void widen_limit(std::span<const std::uint8_t> data, Offsets offsets, Offsets sizes,
                 std::span<std::int64_t> out) {
  check_spans(data.size(), offsets, sizes);
  check_room(sizes, out.size() * sizeof(std::uint16_t));
  std::array<std::uint16_t, 2048> stage;
  std::int64_t* to = out.data();
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    const std::uint8_t* from = data.data() + offsets[i];
    for (std::uint64_t left = sizes[i] / 2; left > 0;) {
      const std::size_t count = left < stage.size() ? left : stage.size();
      std::memcpy(stage.data(), from, count * 2);
      for (std::size_t k = 0; k < count; ++k) to[k] = stage[k];
      to += count;
      from += count * 2;
      left -= count;
    }
  }
}

}  // namespace shufflestore
