// Batches one after another, linked through themselves: to queue one takes no memory, so it cannot fail.
#pragma once

#include <memory>

namespace shufflestore {

class Pending;

// A batch is in one queue at a time. Guarded by whoever has it.
class BatchQueue {
 public:
  BatchQueue() noexcept = default;
  BatchQueue(const BatchQueue&) = delete;
  BatchQueue& operator=(const BatchQueue&) = delete;
  ~BatchQueue() { clear(); }

  bool empty() const noexcept { return first_ == nullptr; }
  const std::shared_ptr<Pending>& front() const noexcept { return first_; }
  void push_back(std::shared_ptr<Pending> batch) noexcept;
  std::shared_ptr<Pending> pop_front() noexcept;
  // Moves all of another queue behind the last.
  void append(BatchQueue& other) noexcept;
  // Lets go of one after the other: each may be the last that holds its batch.
  void clear() noexcept;

 private:
  std::shared_ptr<Pending> first_;
  Pending* last_ = nullptr;
};

}  // namespace shufflestore
