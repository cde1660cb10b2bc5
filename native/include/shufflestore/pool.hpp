// The threads of a reader. They start with the first batch, work on batches in the order they came, and
// never touch Python.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "shufflestore/batch_queue.hpp"
#include "shufflestore/engine.hpp"

namespace shufflestore {

class Pool {
 public:
  using Batch = std::shared_ptr<Pending>;

  Pool(const Engine& engine, FileTable& files, Counters& counters, std::size_t threads);
  ~Pool() { close(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Queues the batches; those of a flow start as it has room. False, and nothing done, once closed. Throws
  // IoError if no thread can be started.
  bool push(std::span<const Batch> batches);

  // Outputs of a flow were taken: what waits for room may start.
  void give_room(Flow& flow, std::uint64_t bytes) noexcept;
  std::uint64_t used(const Flow& flow) const;

  using Patience = std::chrono::milliseconds;
  static constexpr Patience kForAsLongAsItTakes = std::chrono::hours(24 * 365);

  // Cancels what is queued, waits for the reads that have started, ends the threads. Idempotent. False if a
  // thread is still at work when the patience is over, say on a network that does not answer: such threads
  // are left to themselves, and this pool and all that it works with must then live for ever.
  bool close(Patience patience = kForAsLongAsItTakes) noexcept;

 private:
  enum class Start { kUnderWay, kReady, kNoMemory };

  void start_threads();
  void work(std::size_t number) noexcept;
  // The batch to work on; null once closed, or where there is none and the caller has better things to do.
  Batch next(bool may_wait) noexcept;
  void admit(Flow& flow, BatchQueue& over) noexcept;
  void run_batch(EngineState& state, Worker& worker, const Batch& batch) noexcept;

  const Engine& engine_;
  FileTable& files_;
  Counters& counters_;
  const std::size_t wanted_threads_;
  std::mutex closing_;  // one close at a time, so that each returns after the threads have ended; guards:
  bool is_left_ = false;
  mutable std::mutex mutex_;  // guards all below
  std::condition_variable wake_;
  std::condition_variable ended_;
  std::atomic<Start> newest_{Start::kUnderWay};  // of the thread made last
  std::size_t at_work_ = 0;                      // threads that have not ended
  BatchQueue queue_;
  std::vector<std::weak_ptr<Flow>> flows_;
  std::vector<std::thread> threads_;
  bool is_closed_ = false;
};

}  // namespace shufflestore
