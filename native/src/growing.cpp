#include "shufflestore/growing.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace shufflestore {

void Growing::append(const void* from, std::size_t size) {
  if (size > block_.size() - size_) grow(size);
  if (size != 0) std::memcpy(block_.data() + size_, from, size);
  size_ += size;
}

void Growing::grow(std::size_t more) {
  constexpr std::size_t kLeast = 4096;
  if (more > SIZE_MAX / 4 - size_) throw std::bad_alloc();
  Buffer larger = Buffer::allocate(std::max({size_ + more, 2 * block_.size(), first_room_, kLeast}));
  if (size_ != 0) std::memcpy(larger.data(), block_.data(), size_);
  block_ = std::move(larger);
}

Buffer Growing::take() {
  if (block_.data() == nullptr) grow(0);
  first_room_ = block_.size();
  size_ = 0;
  return std::exchange(block_, Buffer());
}

}  // namespace shufflestore
