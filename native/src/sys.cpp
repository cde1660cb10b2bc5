#include "shufflestore/sys.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace shufflestore {
namespace {

void* allocate(std::size_t alignment, std::size_t size) {
  void* block = nullptr;
  return posix_memalign(&block, alignment, size) == 0 ? block : nullptr;
}

// Linux 6.5; newer than the headers of the compilers that build this. Elsewhere ENOSYS.
int cachestat(int fd, std::uint64_t size, std::uint64_t* pages) {
  constexpr long kCachestat = 451;
  const std::uint64_t range[2] = {0, size};
  std::uint64_t found[5] = {};  // pages in the cache come first
  const long result = ::syscall(kCachestat, fd, range, found, 0);
  *pages = found[0];
  return static_cast<int>(result);
}

const Sys kReal = {
    .open = [](const char* path, int flags) { return ::open(path, flags); },
    .close = ::close,
    .pread = ::pread,
    .fstat = [](int fd, struct stat* found) { return ::fstat(fd, found); },
    .stat = [](const char* path, struct stat* found) { return ::stat(path, found); },
    .fadvise = ::posix_fadvise,
    .sync_file_range = ::sync_file_range,
    .mmap = ::mmap,
    .munmap = ::munmap,
    .madvise = ::madvise,
    .mincore = ::mincore,
    .cachestat = cachestat,
    .allocate = allocate,
    .release = ::free,
    .sigaction = [](int signal, const struct sigaction* action,
                    struct sigaction* previous) { return ::sigaction(signal, action, previous); },
    .getrlimit =
        [](int resource, struct rlimit* limit) {
          return ::getrlimit(static_cast<__rlimit_resource>(resource), limit);
        },
    .io_uring_setup =
        [](unsigned entries, struct io_uring_params* parameters) {
          return static_cast<int>(::syscall(SYS_io_uring_setup, entries, parameters));
        },
    .io_uring_enter =
        [](int ring, unsigned submit, unsigned complete, unsigned flags) {
          return static_cast<int>(::syscall(SYS_io_uring_enter, ring, submit, complete, flags, nullptr, 0));
        },
};

std::atomic<const Sys*> g_sys = &kReal;

}  // namespace

const Sys& real_sys() noexcept {
  return kReal;
}
const Sys& sys() noexcept {
  return *g_sys.load(std::memory_order_acquire);
}
void replace_sys(const Sys* table) noexcept {
  g_sys.store(table != nullptr ? table : &kReal, std::memory_order_release);
}

}  // namespace shufflestore
