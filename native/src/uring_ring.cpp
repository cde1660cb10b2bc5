#include "uring_ring.hpp"

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "shufflestore/error.hpp"
#include "shufflestore/sys.hpp"

namespace shufflestore {
namespace {

// Shared with the kernel: what it writes is acquired, what it reads is released.
std::uint32_t load(std::uint32_t* shared) noexcept {
  return std::atomic_ref(*shared).load(std::memory_order_acquire);
}
void store(std::uint32_t* shared, std::uint32_t value) noexcept {
  std::atomic_ref(*shared).store(value, std::memory_order_release);
}

int set_up(unsigned depth, io_uring_params& parameters) noexcept {
  // The newest manners first: one thread submits, and completions are worked off when it asks for them.
  for (const unsigned flags : {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0u}) {
    parameters = {};
    parameters.flags = flags;
    const int fd = sys().io_uring_setup(depth, &parameters);
    if (fd >= 0 || errno != EINVAL) return fd;
  }
  return -1;
}

Mapping map(int fd, std::size_t size, std::uint64_t what) {
  void* const at = sys().mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                              static_cast<off_t>(what));
  if (at == MAP_FAILED) throw IoError(errno, "io_uring", "cannot map the ring of");
  sys().madvise(at, size, MADV_DONTFORK);  // a child has no use for it
  return {at, size};
}

std::uint32_t* word(const Mapping& map, std::uint32_t offset) noexcept {
  return reinterpret_cast<std::uint32_t*>(const_cast<std::uint8_t*>(map.data()) + offset);
}

}  // namespace

Ring::Ring(unsigned depth) {
  io_uring_params parameters;
  const int fd = set_up(depth, parameters);
  if (fd < 0) throw IoError(errno, "io_uring", "cannot set up");
  fd_ = Fd(fd);
  const io_sqring_offsets& sq = parameters.sq_off;
  const io_cqring_offsets& cq = parameters.cq_off;
  submissions_ = map(fd, sq.array + parameters.sq_entries * sizeof(std::uint32_t), IORING_OFF_SQ_RING);
  completions_ = map(fd, cq.cqes + parameters.cq_entries * sizeof(io_uring_cqe), IORING_OFF_CQ_RING);
  entries_ = map(fd, parameters.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);
  submit_head_ = word(submissions_, sq.head);
  submit_tail_ = word(submissions_, sq.tail);
  submit_mask_ = *word(submissions_, sq.ring_mask);
  complete_head_ = word(completions_, cq.head);
  complete_tail_ = word(completions_, cq.tail);
  complete_mask_ = *word(completions_, cq.ring_mask);
  ended_ = reinterpret_cast<io_uring_cqe*>(word(completions_, cq.cqes));
  wanted_ = reinterpret_cast<io_uring_sqe*>(const_cast<std::uint8_t*>(entries_.data()));
  tail_ = *submit_tail_;
  std::uint32_t* const order = word(submissions_, sq.array);
  for (std::uint32_t i = 0; i < parameters.sq_entries; ++i) order[i] = i;  // entries go in their own order
}

void Ring::read(int fd, void* to, std::uint32_t size, std::uint64_t offset, std::uint64_t tag) noexcept {
  io_uring_sqe& entry = wanted_[tail_ & submit_mask_];
  std::memset(&entry, 0, sizeof entry);
  entry.opcode = IORING_OP_READ;
  entry.fd = fd;
  entry.addr = reinterpret_cast<std::uint64_t>(to);
  entry.len = size;
  entry.off = offset;
  entry.user_data = tag;
  ++tail_;
}

std::uint32_t Ring::accepted() const noexcept {
  return load(submit_head_);
}

int Ring::enter(unsigned least) noexcept {
  store(submit_tail_, tail_);
  const int done = sys().io_uring_enter(fd_.get(), tail_ - accepted(), least, IORING_ENTER_GETEVENTS);
  return done < 0 ? errno : 0;
}

bool Ring::next(Ended& ended) noexcept {
  const std::uint32_t head = *complete_head_;  // ours alone to move
  if (head == load(complete_tail_)) return false;
  const io_uring_cqe& found = ended_[head & complete_mask_];
  ended = {.tag = found.user_data, .result = found.res};
  store(complete_head_, head + 1);
  return true;
}

bool Ring::take_back(std::uint64_t& tag) noexcept {
  if (accepted() == tail_) return false;
  --tail_;
  store(submit_tail_, tail_);
  tag = wanted_[tail_ & submit_mask_].user_data;
  return true;
}

}  // namespace shufflestore
