#include <sys/wait.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "check.hpp"
#include "scene.hpp"

using namespace scene;

namespace {

const Bytes kData = noise(1 << 18);

// In the child of a process with threads, ThreadSanitizer cannot follow new ones, and the allocator of
// AddressSanitizer (gcc 12) may be locked by a thread that is not there.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kMayAllocate = false;
#else
constexpr bool kMayAllocate = true;
#endif

bool reads_right(Reader& reader) {
  std::vector<Read> reads;
  for (std::uint64_t at = 0; at + 1024 <= kData.size(); at += 1024) {
    reads.push_back(checked(copy_read(at, at, 1024), kData));
  }
  const auto batch = submit(reader, reads, kData.size());
  if (!finish(batch) || batch->failure().has_value()) return false;
  return std::memcmp(batch->take()[0].data(), kData.data(), kData.size()) == 0;
}

int child_result(pid_t child) {
  int status = 0;
  ::waitpid(child, &status, 0);
  const int result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (result != 0) std::printf("the child ended with %d\n", result);
  return result;
}

}  // namespace

TEST(a_child_forked_while_threads_are_busy_reads_on_and_ends) {
  const TempFile file(kData);
  for (const char* engine : kEngines) {
    Reader reader(engine, 3, 0);
    reader.add(file.path(), kData.size());
    std::atomic<bool> stop{false};
    std::thread busy([&] {
      while (!stop) CHECK(reads_right(reader));
    });
    for (int round = 0; round < 30; ++round) {
      std::vector<Read> reads;
      for (std::uint64_t i = 0; i < 500; ++i) reads.push_back(copy_read(0, i * 1024, 1024));
      const auto inherited = submit(reader, reads, 500 * 1024);
      const pid_t child = ::fork();
      if (child == 0) {
        ::alarm(30);
        if (!inherited->wait(std::chrono::seconds(5))) ::_exit(2);
        const auto failure = inherited->failure();
        if (failure.has_value() && failure->kind != FailureKind::kClosed) ::_exit(3);
        if (kMayAllocate && round % 3 != 0 && !reads_right(reader)) ::_exit(4);
        reader.close();
        ::_exit(0);
      }
      CHECK(child_result(child) == 0);
      CHECK(finish(inherited));
    }
    stop = true;
    busy.join();
  }
}

TEST(a_reader_closed_before_the_fork_stays_closed) {
  Reader reader("pread", 1, 0);
  reader.close();
  const pid_t child = ::fork();
  if (child == 0) ::_exit(check::throws<std::invalid_argument>([&] { submit(reader, {}, 0); }) ? 0 : 1);
  CHECK(child_result(child) == 0);
}
