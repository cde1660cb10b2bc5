// Checksums of many spans of one buffer.
#pragma once

#include <cstdint>
#include <span>

namespace shufflestore {

using Offsets = std::span<const std::uint64_t>;

// Throws std::invalid_argument, naming the first span that leaves [0, data_size).
void check_spans(std::uint64_t data_size, Offsets offsets, Offsets sizes);

// out[i] is the CRC32C of span i. Throws std::invalid_argument as check_spans does.
void crc32c_spans(std::span<const std::uint8_t> data, Offsets offsets, Offsets sizes,
                  std::span<std::uint32_t> out);

// The CRC32C of the spans one after another.
std::uint32_t crc32c_chain(std::span<const std::uint8_t> data, Offsets offsets, Offsets sizes,
                           std::uint32_t seed);

}  // namespace shufflestore
