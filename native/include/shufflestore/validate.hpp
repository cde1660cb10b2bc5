// Every descriptor is checked before any is queued: a wrong one is an error, never a wild write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "shufflestore/read.hpp"

namespace shufflestore {

// What a submit brings: see Reader::submit.
struct Submission {
  std::span<const Read> reads;
  std::span<const std::uint64_t> ends;
  std::span<const std::uint64_t> output_sizes;
  std::size_t outputs_per_batch;
  std::size_t file_count;
};

// Throws std::invalid_argument that names the first bad descriptor, its values and what was allowed.
void validate(const Submission& submission);

}  // namespace shufflestore
