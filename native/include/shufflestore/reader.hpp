// A reader: files by number, batches of reads in, filled buffers out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shufflestore/engine.hpp"
#include "shufflestore/pool.hpp"

namespace shufflestore {

struct Snapshot {
  std::uint64_t reads = 0;
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_delivered = 0;
  std::uint64_t batches = 0;
  std::uint64_t checksum_failures = 0;
  std::uint64_t open_files = 0;
};

struct ReaderState;  // all that does not survive a fork

// Safe with concurrent use. In a forked child it starts afresh: the same files by the same numbers, new
// threads at the first submit; batches of the parent are over ("closed") there.
class Reader {
 public:
  using Batch = std::shared_ptr<Pending>;

  // `threads` in [1, 1024]. `max_open_files` 0 chooses. Throws what find_engine throws.
  Reader(std::string_view engine, std::size_t threads, std::size_t max_open_files);
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Registers a file; opens nothing. `size` is the length somebody vouches for, or kUnknownSize.
  std::uint32_t add(std::string path, std::uint64_t size);

  // Queues the reads of ends.size() batches; batch i has reads [ends[i - 1], ends[i]) and outputs of the
  // sizes in row i of `output_sizes`. Throws std::invalid_argument, naming the descriptor, before anything
  // is queued.
  // Those of a flow, which must be this reader's and this process's, start as it has room.
  std::vector<Batch> submit(std::span<const Read> reads, std::span<const std::uint64_t> ends,
                            std::span<const std::uint64_t> output_sizes, std::size_t outputs_per_batch,
                            const std::shared_ptr<Flow>& flow = nullptr);

  // Bounds the outputs, started and not taken, of batches submitted with it.
  std::shared_ptr<Flow> flow(std::uint64_t limit) const;

  // Ends all reads and threads, closes all files. Idempotent.
  void close() noexcept;

  std::string_view engine() const noexcept { return engine_.name; }
  Snapshot counters() const;

 private:
  std::shared_ptr<ReaderState> state() const;
  std::shared_ptr<ReaderState> make_state() const;
  std::size_t grain(std::span<const Read> reads) const noexcept;

  const Engine& engine_;
  const std::size_t threads_;
  const std::size_t max_open_files_;
  mutable std::shared_ptr<ReaderState> state_;  // guarded by process_lock()
};

// Closes every reader of this process: for the end of the interpreter, which no read that hangs may hold up.
void close_all_readers() noexcept;

}  // namespace shufflestore
