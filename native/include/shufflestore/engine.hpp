// The table of engines. An engine is one file that fills in its slots, and one line in engine.cpp.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "shufflestore/file_table.hpp"
#include "shufflestore/pending.hpp"

namespace shufflestore {

struct Counters {
  std::atomic<std::uint64_t> reads{0};
  std::atomic<std::uint64_t> bytes_read{0};
  std::atomic<std::uint64_t> bytes_delivered{0};
  std::atomic<std::uint64_t> batches{0};
  std::atomic<std::uint64_t> checksum_failures{0};
};

// What one thread of an engine keeps between reads: staging memory, a ring.
class EngineState {
 public:
  virtual ~EngineState() = default;
};

// A thread at work.
struct Worker {
  std::size_t number;
  FileTable& files;
  Counters& counters;
};

// How an engine likes its work cut.
struct Cut {
  Access access;              // what it needs of a file
  std::size_t most_reads;     // a thread takes at most so many reads at a time,
  std::uint64_t about_bytes;  // and about so many bytes
};

struct Engine {
  std::string_view name;
  Cut cut;
  // Empty if it can run here, else why not.
  std::string (*available)();
  // Makes a thread's state; runs in that thread. Throws IoError, std::bad_alloc.
  std::unique_ptr<EngineState> (*open)();
  // Does the reads [range.begin, range.end) of a batch, and reports each that fails. Returns when all of
  // them have ended. Throws nothing but std::bad_alloc. Null for an engine that leaves reads in flight.
  void (*execute)(EngineState& state, Worker& worker, Pending& batch, Pending::Range range);
  // Ends what `open` made, with nothing in flight.
  void (*close)(std::unique_ptr<EngineState> state) noexcept;
  // For one that does: puts the reads in flight, as there is room for them. Each ends by `ended`.
  void (*start)(EngineState& state, Worker& worker, const std::shared_ptr<Pending>& batch,
                Pending::Range range) noexcept = nullptr;
  // Waits until a read has ended, if one is in flight; true while others are.
  bool (*reap)(EngineState& state, Worker& worker) noexcept = nullptr;
};

std::span<const Engine> engines() noexcept;

// Throws std::invalid_argument for a name nobody has, with the names there are, and IoError (ENOTSUP) for
// one that cannot run here.
const Engine& find_engine(std::string_view name);

// Shared by the engines: how a read of `open` that starts at `offset` ends short.
Failure short_read(std::size_t index, const Read& read, std::uint64_t file_size) noexcept;

// Compares the checksum where the read has one; reports and counts a difference.
void check_crc(Worker& worker, Pending& batch, std::size_t index, std::uint32_t found) noexcept;

// Ends `count` claimed reads of a batch, which asked for so many bytes; completes the batch after its last.
void ended(Worker& worker, Pending& batch, std::size_t count, std::uint64_t bytes) noexcept;

extern const Engine kMmapEngine;
extern const Engine kPreadEngine;
extern const Engine kUringEngine;
extern const Engine kUringDirectEngine;
extern const Engine kNullEngine;

}  // namespace shufflestore
