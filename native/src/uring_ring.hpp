// One io_uring, spoken to by system calls alone: the core needs two operations of it, a read and a wait.
#pragma once

#include <linux/io_uring.h>

#include <cstddef>
#include <cstdint>

#include "shufflestore/fd.hpp"

namespace shufflestore {

class Ring {
 public:
  struct Ended {
    std::uint64_t tag;
    std::int32_t result;  // bytes, or the negative of an errno
  };

  // For use by the calling thread alone, at most `depth` reads at a time. Throws IoError.
  explicit Ring(unsigned depth);

  // Puts a read aside for the next `enter`. At most `depth` may be in flight.
  void read(int fd, void* to, std::uint32_t size, std::uint64_t offset, std::uint64_t tag) noexcept;

  // Hands over what was put aside and waits until `least` reads have ended. 0, or the errno of a refusal.
  int enter(unsigned least) noexcept;

  // Takes the next read that has ended; false if there is none.
  bool next(Ended& ended) noexcept;

  // Whether a read was put aside that the system has not accepted.
  bool is_waiting() const noexcept { return accepted() != tail_; }

  // Takes back the last read that the system has not accepted; false if it has all.
  bool take_back(std::uint64_t& tag) noexcept;

 private:
  std::uint32_t accepted() const noexcept;

  Fd fd_;
  Mapping submissions_;
  Mapping completions_;
  Mapping entries_;
  std::uint32_t* submit_head_ = nullptr;
  std::uint32_t* submit_tail_ = nullptr;
  std::uint32_t submit_mask_ = 0;
  std::uint32_t* complete_head_ = nullptr;
  std::uint32_t* complete_tail_ = nullptr;
  std::uint32_t complete_mask_ = 0;
  io_uring_cqe* ended_ = nullptr;
  io_uring_sqe* wanted_ = nullptr;
  std::uint32_t tail_ = 0;
};

}  // namespace shufflestore
