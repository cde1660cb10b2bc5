// When may a file that a worker could still be using be closed? Once every worker has been outside the
// table since. Entering costs one store, so workers never touch a shared counter on the way to a byte.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace shufflestore {

class Epochs {
 public:
  explicit Epochs(std::size_t workers) : workers_(workers), inside_(std::make_unique<Slot[]>(workers)) {}

  // What `worker` finds between enter and leave stays open. Not nested.
  void enter(std::size_t worker) noexcept { inside_[worker].since.store(now_.load()); }
  void leave(std::size_t worker) noexcept { inside_[worker].since.store(0, std::memory_order_release); }

  // For something just taken out of sight: the moment it was retired.
  std::uint64_t retire() noexcept { return now_.fetch_add(1); }

  // Everything retired before this moment is out of use.
  std::uint64_t oldest() const noexcept {
    std::uint64_t oldest = now_.load();
    for (std::size_t i = 0; i < workers_; ++i) {
      const std::uint64_t since = inside_[i].since.load();
      if (since != 0 && since < oldest) oldest = since;
    }
    return oldest;
  }

 private:
  struct alignas(64) Slot {
    std::atomic<std::uint64_t> since{0};
  };

  std::size_t workers_;
  std::unique_ptr<Slot[]> inside_;
  std::atomic<std::uint64_t> now_{1};
};

}  // namespace shufflestore
