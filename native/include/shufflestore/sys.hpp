// The seam to the system: every system call of the core goes through this table, so that tests can make
// each of them fail. Calls keep the manners of their namesakes: -1 or null, and errno.
#pragma once

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <csignal>
#include <cstddef>
#include <cstdint>

struct io_uring_params;

namespace shufflestore {

struct Sys {
  int (*open)(const char* path, int flags);
  int (*close)(int fd);
  ssize_t (*pread)(int fd, void* to, std::size_t size, off_t offset);
  int (*fstat)(int fd, struct stat* found);
  int (*stat)(const char* path, struct stat* found);
  int (*fadvise)(int fd, off_t offset, off_t size, int advice);  // returns the error, leaves errno alone
  int (*sync_file_range)(int fd, off_t offset, off_t size, unsigned flags);
  void* (*mmap)(void* at, std::size_t size, int protection, int flags, int fd, off_t offset);
  int (*munmap)(void* at, std::size_t size);
  int (*madvise)(void* at, std::size_t size, int advice);
  int (*mincore)(void* at, std::size_t size, unsigned char* resident);
  int (*cachestat)(int fd, std::uint64_t size, std::uint64_t* pages);  // of bytes [0, size) in the page cache
  void* (*allocate)(std::size_t alignment, std::size_t size);
  void (*release)(void* block);
  int (*sigaction)(int signal, const struct sigaction* action, struct sigaction* previous);
  int (*getrlimit)(int resource, struct rlimit* limit);
  int (*io_uring_setup)(unsigned entries, struct io_uring_params* parameters);
  int (*io_uring_enter)(int ring, unsigned submit, unsigned complete, unsigned flags);
};

// The real thing.
const Sys& real_sys() noexcept;

// What the core uses now.
const Sys& sys() noexcept;

// For tests. `table` must live until the next call; null brings the real thing back.
void replace_sys(const Sys* table) noexcept;

}  // namespace shufflestore
