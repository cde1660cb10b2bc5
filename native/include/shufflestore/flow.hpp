// A stream of batches that somebody takes one after another: what is read ahead for him stays within a bound.
#pragma once

#include <cstdint>
#include <memory>

#include "shufflestore/batch_queue.hpp"

namespace shufflestore {

class Pool;

// All but `limit` and `pool` is guarded by the pool's mutex.
struct Flow {
  Flow(std::weak_ptr<Pool> home, std::uint64_t bytes) : pool(std::move(home)), limit(bytes) {}

  const std::weak_ptr<Pool> pool;
  // Of outputs of batches that have started and were not taken. A batch larger than that comes alone.
  const std::uint64_t limit;
  std::uint64_t used = 0;
  BatchQueue waiting;
};

}  // namespace shufflestore
