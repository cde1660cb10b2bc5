#include "shufflestore/pending.hpp"

#include <algorithm>
#include <new>
#include <numeric>
#include <stdexcept>

#include "shufflestore/fork.hpp"
#include "shufflestore/pool.hpp"

namespace shufflestore {

std::string_view name(FailureKind kind) noexcept {
  switch (kind) {
    case FailureKind::kErrno:
      return "errno";
    case FailureKind::kShort:
      return "short";
    case FailureKind::kChecksum:
      return "checksum";
    case FailureKind::kMemory:
      return "memory";
    case FailureKind::kClosed:
      break;
  }
  return "closed";
}

Pending::Pending(Reads reads, std::size_t first, std::size_t last,
                 std::span<const std::uint64_t> output_sizes, std::size_t grain, std::shared_ptr<Flow> flow)
    : owner_(std::move(reads)),
      reads_(std::span(*owner_).subspan(first, last - first)),
      output_sizes_(output_sizes.begin(), output_sizes.end()),
      grain_(std::max<std::size_t>(grain, 1)),
      generation_(process_generation()),
      flow_(std::move(flow)),
      unfinished_(last - first),
      outputs_(output_sizes.size()) {}

bool Pending::is_inherited() const noexcept {
  return generation_ != process_generation() && !is_done_.load(std::memory_order_acquire);
}

bool Pending::is_done() const noexcept {
  return is_done_.load(std::memory_order_acquire) || is_inherited();
}

bool Pending::wait(std::chrono::nanoseconds limit) {
  // A child never locks what a parent's thread may have held: there it is over, as "closed".
  if (is_done()) return true;
  std::unique_lock lock(mutex_);
  return done_.wait_for(lock, limit, [this] { return is_done_.load(std::memory_order_relaxed); });
}

std::optional<Failure> Pending::failure() const {
  if (is_inherited()) return Failure{};
  if (!is_done_.load(std::memory_order_acquire)) throw std::invalid_argument("the batch is not done yet");
  return failure_;
}

std::vector<Buffer> Pending::take() {
  if (failure().has_value()) throw std::invalid_argument("the batch failed: it has no outputs");
  if (is_taken_.exchange(true)) throw std::invalid_argument("the outputs were taken before");
  std::vector<Buffer> outputs = std::move(outputs_);
  leave_flow();
  return outputs;
}

void Pending::leave_flow() noexcept {
  if (!counts_.exchange(false)) return;
  if (const std::shared_ptr<Pool> pool = flow_->pool.lock()) pool->give_room(*flow_, output_bytes());
}

void Pending::cancel() noexcept {
  if (is_done()) return;
  const std::uint64_t count = reads_.size();
  const std::uint64_t next = cursor_.exchange(count);
  if (next >= count) return;
  fail({.index = next, .kind = FailureKind::kClosed});
  if (finish(count - next)) complete();
}

Pending::Range Pending::claim() noexcept {
  const std::uint64_t count = reads_.size();
  for (;;) {
    if (cursor_.load(std::memory_order_relaxed) >= count) return {count, count};
    const std::uint64_t begin = cursor_.fetch_add(grain_);
    if (begin >= count) return {count, count};
    const std::uint64_t end = std::min<std::uint64_t>(begin + grain_, count);
    if (prepare()) return {begin, end};
    if (finish(end - begin)) complete();
  }
}

bool Pending::prepare() noexcept {
  if (is_ready_.load(std::memory_order_acquire)) return true;
  std::uint64_t wanted = 0;
  try {
    const std::scoped_lock lock(mutex_);
    if (is_ready_.load(std::memory_order_relaxed)) return true;
    if (failure_.has_value() && failure_->kind == FailureKind::kMemory) return false;
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      wanted = output_sizes_[i];
      if (outputs_[i].data() == nullptr) outputs_[i] = Buffer::allocate(wanted);
    }
    is_ready_.store(true, std::memory_order_release);
    return true;
  } catch (const std::bad_alloc&) {
    fail({.index = 0, .kind = FailureKind::kMemory, .expected = wanted});
    return false;
  }
}

void Pending::fail(const Failure& failure) noexcept {
  const std::scoped_lock lock(mutex_);
  // A cancelled batch is "closed", whatever else went wrong.
  const bool was_closed = failure_.has_value() && failure_->kind == FailureKind::kClosed;
  if (was_closed) return;
  const bool is_first = !failure_.has_value() || failure.index < failure_->index;
  if (is_first || failure.kind == FailureKind::kClosed) failure_ = failure;
}

bool Pending::finish(std::size_t count) noexcept {
  return unfinished_.fetch_sub(count, std::memory_order_acq_rel) == count;
}

void Pending::finish_empty() noexcept {
  prepare();
  complete();
}

bool Pending::has_failed() noexcept {
  const std::scoped_lock lock(mutex_);
  return failure_.has_value();
}

void Pending::complete() noexcept {
  {
    const std::scoped_lock lock(mutex_);
    if (failure_.has_value()) outputs_.clear();  // nobody may take them: the memory goes back now
    is_done_.store(true, std::memory_order_release);
  }
  done_.notify_all();
  if (has_failed()) leave_flow();
}

std::uint64_t Pending::output_bytes() const noexcept {
  return std::accumulate(output_sizes_.begin(), output_sizes_.end(), std::uint64_t{0});
}

}  // namespace shufflestore
