#include "shufflestore/pool.hpp"

#include <pthread.h>
#include <sched.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <new>
#include <system_error>

#include "shufflestore/error.hpp"

namespace shufflestore {
namespace {

// Signals are the main thread's business. Those that the thread raises itself by a fault are not blocked:
// the system would kill the process rather than hold them back, and the guard needs SIGBUS.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int signal : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&blocked, signal);
    pthread_sigmask(SIG_BLOCK, &blocked, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// A thread that is woken must not push whoever woke it, the training loop, off its processor. (All three on
// two processors: a tenth more records.) Advice only: refusal changes nothing.
void work_in_batches() noexcept {
  int policy = 0;
  sched_param priority{};
  if (pthread_getschedparam(pthread_self(), &policy, &priority) == 0 && policy == SCHED_OTHER)
    pthread_setschedparam(pthread_self(), SCHED_BATCH, &priority);
}

}  // namespace

Pool::Pool(const Engine& engine, FileTable& files, Counters& counters, std::size_t threads)
    : engine_(engine), files_(files), counters_(counters), wanted_threads_(threads) {}

bool Pool::push(std::span<const Batch> batches) {
  {
    const std::scoped_lock lock(mutex_);
    if (is_closed_) return false;
    start_threads();
    queue_.insert(queue_.end(), batches.begin(), batches.end());
  }
  wake_.notify_all();
  return true;
}

void Pool::start_threads() {
  if (!threads_.empty()) return;
  const SignalsBlocked blocked;  // a thread is born with the mask of its maker
  threads_.reserve(wanted_threads_);
  try {
    for (std::size_t i = 0; i < wanted_threads_; ++i) {
      threads_.emplace_back([this, i] { work(i); });
      ++at_work_;
    }
  } catch (const std::system_error& error) {
    // Fewer threads do the same work; none is an error.
    if (threads_.empty()) throw IoError(error.code().value(), "", "cannot start a thread");
  }
}

void Pool::work(std::size_t number) noexcept {
  char name[16];
  std::snprintf(name, sizeof name, "shuffle-%zu", number % 10000);
  pthread_setname_np(pthread_self(), name);
  work_in_batches();
  Worker worker{.number = number, .files = files_, .counters = counters_};
  std::unique_ptr<EngineState> state;
  while (const Batch batch = next()) {
    Failure failure{.index = 0, .kind = FailureKind::kMemory, .expected = sizeof(EngineState)};
    try {
      if (state == nullptr) state = engine_.open();
    } catch (const IoError& error) {
      failure = {.index = 0, .kind = FailureKind::kErrno, .error = error.error()};
    } catch (const std::bad_alloc&) {
    }
    if (state != nullptr) {
      run_batch(*state, worker, *batch);
      continue;
    }
    for (auto range = batch->claim(); range.begin < range.end; range = batch->claim()) {
      batch->fail(failure);
      if (batch->finish(range.end - range.begin)) batch->complete();
    }
  }
  if (state != nullptr) engine_.close(std::move(state));
  const std::scoped_lock lock(mutex_);
  --at_work_;
  ended_.notify_all();
}

Pool::Batch Pool::next() {
  std::unique_lock lock(mutex_);
  for (;;) {
    while (!queue_.empty() && queue_.front()->is_exhausted()) queue_.pop_front();
    if (!queue_.empty()) return queue_.front();
    if (is_closed_) return nullptr;
    wake_.wait(lock);
  }
}

void Pool::run_batch(EngineState& state, Worker& worker, Pending& batch) noexcept {
  for (auto range = batch.claim(); range.begin < range.end; range = batch.claim()) {
    std::uint64_t bytes = 0;
    for (std::size_t i = range.begin; i < range.end; ++i) {
      if (batch.read(i).op != kZero) bytes += batch.read(i).size;
    }
    try {
      engine_.execute(state, worker, batch, range);
    } catch (const std::bad_alloc&) {
      batch.fail({.index = range.begin, .kind = FailureKind::kMemory});
    }
    counters_.reads.fetch_add(range.end - range.begin, std::memory_order_relaxed);
    counters_.bytes_read.fetch_add(bytes, std::memory_order_relaxed);
    if (!batch.finish(range.end - range.begin)) continue;
    if (!batch.has_failed()) {
      counters_.batches.fetch_add(1, std::memory_order_relaxed);
      counters_.bytes_delivered.fetch_add(batch.output_bytes(), std::memory_order_relaxed);
    }
    batch.complete();
  }
}

bool Pool::close(Patience patience) noexcept {
  const std::scoped_lock closing(closing_);
  if (is_left_) return false;
  std::unique_lock lock(mutex_);
  is_closed_ = true;
  for (const Batch& batch : queue_) batch->cancel();
  wake_.notify_all();
  const bool have_ended = ended_.wait_for(lock, patience, [this] { return at_work_ == 0; });
  lock.unlock();
  is_left_ = !have_ended;
  for (std::thread& thread : threads_) {
    if (!thread.joinable()) continue;
    if (have_ended) {
      thread.join();
    } else {
      thread.detach();
    }
  }
  return have_ended;
}

}  // namespace shufflestore
