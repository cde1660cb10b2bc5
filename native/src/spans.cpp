#include "shufflestore/spans.hpp"

#include <stdexcept>
#include <string>

#include "shufflestore/crc32c.hpp"

namespace shufflestore {

void check_spans(std::uint64_t data_size, Offsets offsets, Offsets sizes) {
  if (offsets.size() != sizes.size()) {
    throw std::invalid_argument(std::to_string(offsets.size()) + " offsets, but " +
                                std::to_string(sizes.size()) + " sizes");
  }
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    if (offsets[i] <= data_size && sizes[i] <= data_size - offsets[i]) continue;
    throw std::invalid_argument("span " + std::to_string(i) + " is [" + std::to_string(offsets[i]) + ", " +
                                std::to_string(offsets[i]) + " + " + std::to_string(sizes[i]) +
                                "), outside the data's [0, " + std::to_string(data_size) + ")");
  }
}

void crc32c_spans(std::span<const std::uint8_t> data, Offsets offsets, Offsets sizes,
                  std::span<std::uint32_t> out) {
  check_spans(data.size(), offsets, sizes);
  if (out.size() != offsets.size()) {
    throw std::invalid_argument("out has room for " + std::to_string(out.size()) +
                                " checksums, but there are " + std::to_string(offsets.size()) + " spans");
  }
  for (std::size_t i = 0; i < offsets.size(); ++i) out[i] = crc32c(data.data() + offsets[i], sizes[i]);
}

std::uint32_t crc32c_chain(std::span<const std::uint8_t> data, Offsets offsets, Offsets sizes,
                           std::uint32_t seed) {
  check_spans(data.size(), offsets, sizes);
  for (std::size_t i = 0; i < offsets.size(); ++i) seed = crc32c(data.data() + offsets[i], sizes[i], seed);
  return seed;
}

}  // namespace shufflestore
