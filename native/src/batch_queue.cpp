#include "shufflestore/batch_queue.hpp"

#include <utility>

#include "shufflestore/pending.hpp"

namespace shufflestore {

void BatchQueue::push_back(std::shared_ptr<Pending> batch) noexcept {
  Pending* const last = batch.get();
  (first_ == nullptr ? first_ : last_->next_) = std::move(batch);
  last_ = last;
}

std::shared_ptr<Pending> BatchQueue::pop_front() noexcept {
  std::shared_ptr<Pending> batch = std::move(first_);
  first_ = std::move(batch->next_);
  return batch;
}

void BatchQueue::append(BatchQueue& other) noexcept {
  while (!other.empty()) push_back(other.pop_front());
}

void BatchQueue::clear() noexcept {
  while (!empty()) pop_front();
}

}  // namespace shufflestore
