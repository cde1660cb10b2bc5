// One submitted batch: its reads, its outputs, how far it is.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "shufflestore/buffer.hpp"
#include "shufflestore/flow.hpp"
#include "shufflestore/read.hpp"

namespace shufflestore {

class Pending {
 public:
  using Reads = std::shared_ptr<const std::vector<Read>>;  // of a whole submit

  // Has the reads [first, last) of `reads`, claimed `grain` at a time. `flow` may be null.
  Pending(Reads reads, std::size_t first, std::size_t last, std::span<const std::uint64_t> output_sizes,
          std::size_t grain, std::shared_ptr<Flow> flow = nullptr);
  ~Pending() { leave_flow(); }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;

  // --- for whoever submitted it ---

  bool is_done() const noexcept;
  // True once every read has ended, false when the time is over.
  bool wait(std::chrono::nanoseconds limit);
  // The failed read with the lowest index, once done; the same one whatever the threads did.
  std::optional<Failure> failure() const;
  // Hands the outputs over, once, after success. Throws std::invalid_argument otherwise.
  std::vector<Buffer> take();
  // Starts no further read. Does nothing if all have started.
  void cancel() noexcept;

  // --- for the pool and the engines ---

  struct Range {
    std::size_t begin;
    std::size_t end;
  };
  // The next reads to work on; empty when all are claimed. The first claim allocates the outputs.
  Range claim() noexcept;
  bool is_exhausted() const noexcept { return cursor_.load(std::memory_order_relaxed) >= reads_.size(); }
  // Ends `count` claimed reads. True for the last ones of the batch: whoever gets it calls complete().
  [[nodiscard]] bool finish(std::size_t count) noexcept;
  bool has_failed() noexcept;
  void complete() noexcept;
  void fail(const Failure& failure) noexcept;

  const Read& read(std::size_t index) const noexcept { return reads_[index]; }
  std::size_t read_count() const noexcept { return reads_.size(); }
  std::uint8_t* slot(const Read& read) const noexcept { return outputs_[read.output].data() + read.slot; }
  std::uint64_t output_bytes() const noexcept;
  // For a batch without reads: allocates, and is done.
  void finish_empty() noexcept;

  const std::shared_ptr<Flow>& flow() const noexcept { return flow_; }
  // From now on its outputs count in its flow. Called under the pool's mutex.
  void enter_flow() noexcept { counts_.store(true); }

 private:
  friend class BatchQueue;

  bool is_inherited() const noexcept;
  bool prepare() noexcept;
  // Its outputs belong to somebody else now, or are gone. Not under the pool's mutex.
  void leave_flow() noexcept;

  const Reads owner_;
  const std::span<const Read> reads_;
  const std::vector<std::uint64_t> output_sizes_;
  const std::size_t grain_;
  const std::uint64_t generation_;
  const std::shared_ptr<Flow> flow_;
  std::shared_ptr<Pending> next_;    // in the queue that it is in; guarded by whoever has that
  std::atomic<bool> counts_{false};  // in its flow
  std::atomic<std::uint64_t> cursor_{0};
  std::atomic<std::uint64_t> unfinished_;
  std::atomic<bool> is_ready_{false};  // outputs_ is allocated
  std::atomic<bool> is_done_{false};
  std::atomic<bool> is_taken_{false};
  std::vector<Buffer> outputs_;
  std::optional<Failure> failure_;
  std::mutex mutex_;  // guards failure_, allocation and the flag under the condition
  std::condition_variable done_;
};

}  // namespace shufflestore
