// What a plain C loop does, on one thread, without checks: the yardstick of the benchmarks. Compiled with
// the flags of the rest, so that the comparison is fair.
#pragma once

#include <cstdint>
#include <span>

#include "shufflestore/spans.hpp"

namespace shufflestore {

// memcpy of each span data[offsets[i]:][:sizes[i]], one after another, into `out`.
// Throws std::invalid_argument where a span leaves `data` or `out` is too small.
void gather_limit(std::span<const std::uint8_t> data, Offsets offsets, Offsets sizes,
                  std::span<std::uint8_t> out);

// The same for spans of little-endian uint16, each of which becomes an int64.
void widen_limit(std::span<const std::uint8_t> data, Offsets offsets, Offsets sizes,
                 std::span<std::int64_t> out);

}  // namespace shufflestore
