#include "shufflestore/engine.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <stdexcept>

#include "shufflestore/error.hpp"

namespace shufflestore {

std::span<const Engine> engines() noexcept {
  static const std::array kEngines = {kMmapEngine, kPreadEngine, kUringEngine, kUringDirectEngine,
                                      kNullEngine};
  return kEngines;
}

const Engine& find_engine(std::string_view name) {
  std::string names;
  for (const Engine& engine : engines()) {
    if (engine.name == name) {
      const std::string reason = engine.available();
      if (!reason.empty()) throw IoError(ENOTSUP, std::string(name), reason + ": engine");
      return engine;
    }
    names += (names.empty() ? "" : ", ") + std::string(engine.name);
  }
  throw std::invalid_argument("unknown engine '" + std::string(name) + "'; there are: " + names);
}

Failure short_read(std::size_t index, const Read& read, std::uint64_t file_size) noexcept {
  const std::uint64_t there = file_size > read.offset ? file_size - read.offset : 0;
  return {.index = index,
          .kind = FailureKind::kShort,
          .expected = read.size,
          .found = std::min(there, read.size)};
}

void check_crc(Worker& worker, Pending& batch, std::size_t index, std::uint32_t found) noexcept {
  const Read& read = batch.read(index);
  if (!read.has_crc() || read.crc == found) return;
  worker.counters.checksum_failures.fetch_add(1, std::memory_order_relaxed);
  batch.fail({.index = index, .kind = FailureKind::kChecksum, .expected = read.crc, .found = found});
}

void ended(Worker& worker, Pending& batch, std::size_t count, std::uint64_t bytes) noexcept {
  worker.counters.reads.fetch_add(count, std::memory_order_relaxed);
  worker.counters.bytes_read.fetch_add(bytes, std::memory_order_relaxed);
  if (!batch.finish(count)) return;
  if (!batch.has_failed()) {
    worker.counters.batches.fetch_add(1, std::memory_order_relaxed);
    worker.counters.bytes_delivered.fetch_add(batch.output_bytes(), std::memory_order_relaxed);
  }
  batch.complete();
}

}  // namespace shufflestore
