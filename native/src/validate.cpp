#include "shufflestore/validate.hpp"

#include <limits>
#include <stdexcept>
#include <string>

#include "shufflestore/widen.hpp"

namespace shufflestore {
namespace {

constexpr std::uint64_t kLargestOffset = std::numeric_limits<std::int64_t>::max();  // of a file

[[noreturn]] void refuse(std::size_t batch, std::size_t index, const std::string& why) {
  throw std::invalid_argument("read " + std::to_string(index) + " (batch " + std::to_string(batch) +
                              "): " + why);
}

std::string range(std::uint64_t first, std::uint64_t size) {
  const std::string from = std::to_string(first);
  return std::string("[")
      .append(from)
      .append(", ")
      .append(from)
      .append(" + ")
      .append(std::to_string(size))
      .append(")");
}

void check_file_range(std::size_t batch, std::size_t index, const Read& read, std::size_t file_count) {
  if (read.file >= file_count) {
    refuse(batch, index,
           "file " + std::to_string(read.file) + " is not one of the " + std::to_string(file_count) +
               " that are registered");
  }
  if (read.offset > kLargestOffset || read.size > kLargestOffset - read.offset) {
    refuse(batch, index,
           "file bytes " + range(read.offset, read.size) + " pass the largest offset, 2^63 - 1");
  }
}

// Bytes that the read fills in its output.
std::uint64_t slot_bytes(std::size_t batch, std::size_t index, const Read& read) {
  if (read.op == kCopy || read.op == kZero) return read.size;
  const Widening& widen = widening(read.op);
  if (widen.source == 0) refuse(batch, index, "op " + std::to_string(read.op) + " is unknown");
  if (read.size % widen.source != 0) {
    refuse(batch, index,
           "size " + std::to_string(read.size) + " is no multiple of the " + std::to_string(widen.source) +
               " bytes of an integer that op " + std::to_string(read.op) + " widens");
  }
  // The file range was checked, so size is below 2^63 and the ratio at most 8: look before multiplying.
  const std::uint64_t count = read.size / widen.source;
  if (count > std::numeric_limits<std::uint64_t>::max() / widen.target) {
    refuse(batch, index, "size " + std::to_string(read.size) + " overflows when widened");
  }
  return count * widen.target;
}

void check_read(std::size_t batch, std::size_t index, const Read& read, const Submission& submission) {
  if ((read.flags & ~kHasCrc) != 0) {
    refuse(batch, index, "flags " + std::to_string(read.flags) + " have bits that mean nothing");
  }
  if (read.output >= submission.outputs_per_batch) {
    refuse(batch, index,
           "output " + std::to_string(read.output) + " is not one of the " +
               std::to_string(submission.outputs_per_batch) + " of a batch");
  }
  if (read.op != kZero) check_file_range(batch, index, read, submission.file_count);
  const std::uint64_t size = slot_bytes(batch, index, read);
  const std::uint64_t room = submission.output_sizes[batch * submission.outputs_per_batch + read.output];
  if (read.slot > room || size > room - read.slot) {
    refuse(batch, index,
           "slot " + range(read.slot, size) + " reaches outside output " + std::to_string(read.output) +
               " of " + std::to_string(room) + " bytes");
  }
}

}  // namespace

void validate(const Submission& submission) {
  const std::size_t batches = submission.ends.size();
  const std::size_t reads = submission.reads.size();
  if (submission.output_sizes.size() != batches * submission.outputs_per_batch) {
    throw std::invalid_argument(std::to_string(submission.output_sizes.size()) + " output sizes for " +
                                std::to_string(batches) + " batches of " +
                                std::to_string(submission.outputs_per_batch) + " outputs");
  }
  std::uint64_t begin = 0;
  for (std::size_t batch = 0; batch < batches; ++batch) {
    const std::uint64_t end = submission.ends[batch];
    if (end < begin || end > reads) {
      throw std::invalid_argument("ends[" + std::to_string(batch) + "] is " + std::to_string(end) +
                                  ", not in [" + std::to_string(begin) + ", " + std::to_string(reads) + "]");
    }
    for (std::uint64_t i = begin; i < end; ++i) check_read(batch, i, submission.reads[i], submission);
    begin = end;
  }
  if (begin != reads) {
    throw std::invalid_argument("the batches end at read " + std::to_string(begin) + ", but there are " +
                                std::to_string(reads) + " reads");
  }
}

}  // namespace shufflestore
