#include "shufflestore/pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
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

// The C++ library keeps what a thread throws in memory that it takes at the first time, and the process ends
// where there is none left. So it is taken before memory is short, out of what is given back just before.
bool ready_exceptions() noexcept {
  constexpr std::size_t kMoreThanItTakes = 32 << 10;
  void* volatile reserve = std::malloc(kMoreThanItTakes);  // or both are left out, having no effect
  if (reserve == nullptr) return false;
  std::free(reserve);
  [[maybe_unused]] const volatile int asked = std::uncaught_exceptions();  // or it is left out, being pure
  return true;
}

// Who works ahead gives way to whoever waits for nothing: the training loop runs first, and these threads
// take what it leaves. Without, it waits for a processor a third of the time while they fill a look-ahead
// that is long enough. Within the process's own control group; refusal changes nothing.
void give_way() noexcept {
  constexpr int kNicer = 5;
  int policy = 0;
  sched_param priority{};
  if (pthread_getschedparam(pthread_self(), &policy, &priority) != 0 || policy != SCHED_OTHER) return;
  pthread_setschedparam(pthread_self(), SCHED_BATCH, &priority);  // nor does it push its waker aside
  const auto self = static_cast<id_t>(gettid());
  errno = 0;
  const int now = getpriority(PRIO_PROCESS, self);
  if (errno == 0) setpriority(PRIO_PROCESS, self, std::min(now + kNicer, 19));
}

}  // namespace

Pool::Pool(const Engine& engine, FileTable& files, Counters& counters, std::size_t threads)
    : engine_(engine), files_(files), counters_(counters), wanted_threads_(threads) {}

bool Pool::push(std::span<const Batch> batches) {
  BatchQueue over;  // destroyed without the lock: a batch that goes gives its room back
  {
    const std::scoped_lock lock(mutex_);
    if (is_closed_) return false;
    start_threads();
    for (const Batch& batch : batches) {
      const std::shared_ptr<Flow>& flow = batch->flow();
      if (flow == nullptr || batch->read_count() == 0) {
        queue_.push_back(batch);
        continue;
      }
      if (flow->waiting.empty()) {
        std::erase_if(flows_, [&](const auto& other) { return other.expired() || other.lock() == flow; });
        flows_.push_back(flow);
      }
      flow->waiting.push_back(batch);
      admit(*flow, over);
    }
  }
  wake_.notify_all();
  return true;
}

// Batches start in the order they came; whoever takes them in that order always finds room for the next.
void Pool::admit(Flow& flow, BatchQueue& over) noexcept {
  while (!flow.waiting.empty()) {
    const Batch& batch = flow.waiting.front();
    if (batch->is_exhausted()) {  // cancelled
      over.push_back(flow.waiting.pop_front());
      continue;
    }
    const std::uint64_t bytes = batch->output_bytes();
    if (flow.used > 0 && (bytes > flow.limit || flow.used > flow.limit - bytes)) return;
    flow.used += bytes;
    batch->enter_flow();
    queue_.push_back(flow.waiting.pop_front());
  }
}

std::uint64_t Pool::used(const Flow& flow) const {
  const std::scoped_lock lock(mutex_);
  return flow.used;
}

void Pool::give_room(Flow& flow, std::uint64_t bytes) noexcept {
  BatchQueue over;
  {
    const std::scoped_lock lock(mutex_);
    flow.used -= bytes;
    if (is_closed_ || flow.waiting.empty()) return;
    admit(flow, over);
  }
  wake_.notify_all();
}

void Pool::start_threads() {
  if (!threads_.empty()) return;
  if (!ready_exceptions()) throw std::bad_alloc();
  const SignalsBlocked blocked;  // a thread is born with the mask of its maker
  threads_.reserve(wanted_threads_);
  // Fewer threads do the same work; none is an error.
  try {
    while (threads_.size() < wanted_threads_) {
      // One after the other: a thread takes the most memory at its start, and gives most of it back.
      newest_ = Start::kUnderWay;
      threads_.emplace_back([this, number = threads_.size()] {
        const bool is_ready = ready_exceptions();
        newest_ = is_ready ? Start::kReady : Start::kNoMemory;
        newest_.notify_one();
        if (is_ready) work(number);
      });
      newest_.wait(Start::kUnderWay);
      if (newest_ == Start::kNoMemory) {
        threads_.back().join();
        threads_.pop_back();
        break;
      }
      ++at_work_;
    }
  } catch (const std::system_error& error) {
    if (threads_.empty()) throw IoError(error.code().value(), "", "cannot start a thread");
  }
  if (threads_.empty()) throw std::bad_alloc();
}

void Pool::work(std::size_t number) noexcept {
  char name[16];
  std::snprintf(name, sizeof name, "shuffle-%zu", number % 10000);
  pthread_setname_np(pthread_self(), name);
  give_way();
  Worker worker{.number = number, .files = files_, .counters = counters_};
  std::unique_ptr<EngineState> state;
  bool is_in_flight = false;  // something that this thread has started
  for (;;) {
    const Batch batch = next(!is_in_flight);
    if (batch == nullptr) {
      if (!is_in_flight) break;
      is_in_flight = engine_.reap(*state, worker);
      continue;
    }
    Failure failure{.index = 0, .kind = FailureKind::kMemory, .expected = sizeof(EngineState)};
    try {
      if (state == nullptr) state = engine_.open();
    } catch (const IoError& error) {
      failure = {.index = 0, .kind = FailureKind::kErrno, .error = error.error()};
    } catch (const std::bad_alloc&) {
    }
    if (state != nullptr) {
      run_batch(*state, worker, batch);
      is_in_flight = engine_.start != nullptr;
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

Pool::Batch Pool::next(bool may_wait) noexcept {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (!queue_.empty() && queue_.front()->is_exhausted()) {
      Batch over = queue_.pop_front();
      lock.unlock();
      over.reset();  // without the lock: a batch that goes gives its room back
      lock.lock();
    } else if (!queue_.empty()) {
      return queue_.front();
    } else if (is_closed_ || !may_wait) {
      return nullptr;
    } else {
      wake_.wait(lock);
    }
  }
}

void Pool::run_batch(EngineState& state, Worker& worker, const Batch& batch) noexcept {
  for (auto range = batch->claim(); range.begin < range.end; range = batch->claim()) {
    if (engine_.start != nullptr) {
      engine_.start(state, worker, batch, range);
      continue;
    }
    std::uint64_t bytes = 0;
    for (std::size_t i = range.begin; i < range.end; ++i) {
      if (batch->read(i).op != kZero) bytes += batch->read(i).size;
    }
    try {
      engine_.execute(state, worker, *batch, range);
    } catch (const std::bad_alloc&) {
      batch->fail({.index = range.begin, .kind = FailureKind::kMemory});
    }
    ended(worker, *batch, range.end - range.begin, bytes);
  }
}

bool Pool::close(Patience patience) noexcept {
  const std::scoped_lock closing(closing_);
  if (is_left_) return false;
  BatchQueue over;
  std::unique_lock lock(mutex_);
  is_closed_ = true;
  over.append(queue_);
  for (const auto& weak : flows_) {
    if (const std::shared_ptr<Flow> flow = weak.lock()) over.append(flow->waiting);
  }
  flows_.clear();
  lock.unlock();
  while (!over.empty()) over.pop_front()->cancel();  // which gives its room back
  lock.lock();
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
