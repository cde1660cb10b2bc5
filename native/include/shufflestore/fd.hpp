// The one owner of a file descriptor, and of a mapped file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "shufflestore/sys.hpp"

namespace shufflestore {

class Fd {
 public:
  Fd() noexcept = default;
  explicit Fd(int fd) noexcept : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  // Never repeated after EINTR: Linux has freed the number by then, and another thread may own it.
  ~Fd() {
    if (fd_ >= 0) sys().close(fd_);
  }

  int get() const noexcept { return fd_; }

 private:
  int fd_ = -1;
};

class Mapping {
 public:
  Mapping() noexcept = default;
  Mapping(void* at, std::size_t size) noexcept : at_(at), size_(size) {}
  Mapping(Mapping&& other) noexcept
      : at_(std::exchange(other.at_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Mapping() {
    if (at_ != nullptr) sys().munmap(at_, size_);
  }

  const std::uint8_t* data() const noexcept { return static_cast<const std::uint8_t*>(at_); }
  std::size_t size() const noexcept { return size_; }

 private:
  void* at_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace shufflestore
