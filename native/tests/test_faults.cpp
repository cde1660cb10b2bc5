// Each system call made to fail, through the seam.
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "check.hpp"
#include "scene.hpp"
#include "shufflestore/error.hpp"

using namespace scene;

namespace {

std::atomic<int> g_calls{0};
int g_nth = 0;
const Bytes kData = noise(100000);

Reader::Batch read_all(Reader& reader) {
  std::vector<Read> reads;
  for (std::uint64_t at = 0; at + 1000 <= kData.size(); at += 1000) {
    reads.push_back(checked(copy_read(at, at, 1000), kData));
  }
  auto batch = submit(reader, reads, kData.size());
  CHECK(finish(batch));
  return batch;
}

bool is_whole(const Reader::Batch& batch) {
  if (batch->failure().has_value()) return false;
  return std::memcmp(batch->take()[0].data(), kData.data(), kData.size()) == 0;
}

}  // namespace

TEST(interrupted_and_short_reads_are_continued) {
  const TempFile file(kData);
  FakeSys fake;
  g_calls = 0;
  fake.table.open = [](const char* path, int flags) {
    if (g_calls++ < 3) return errno = EINTR, -1;
    return real_sys().open(path, flags);
  };
  fake.table.pread = [](int fd, void* to, std::size_t size, off_t offset) -> ssize_t {
    if (g_calls++ % 3 != 0) return errno = EINTR, -1;
    return real_sys().pread(fd, to, size > 7 ? size / 2 + 1 : size, offset);
  };
  Reader reader("pread", 2, 0);
  reader.add(file.path(), kData.size());
  CHECK(is_whole(read_all(reader)));
}

TEST(a_device_error_names_the_first_failed_read) {
  const TempFile file(kData);
  FakeSys fake;
  fake.table.pread = [](int fd, void* to, std::size_t size, off_t offset) -> ssize_t {
    if (offset == 40000 || offset == 70000) return errno = EIO, -1;
    return real_sys().pread(fd, to, size, offset);
  };
  for (int round = 0; round < 20; ++round) {
    Reader reader("pread", 4, 0);
    reader.add(file.path(), kData.size());
    const auto failure = read_all(reader)->failure();
    CHECK(failure.has_value() && failure->index == 40);
    CHECK(failure->kind == FailureKind::kErrno && failure->error == EIO);
  }
}

TEST(a_file_that_ends_early_is_short_with_what_was_there) {
  const TempFile file(Bytes(kData.begin(), kData.begin() + 50500));
  for (const char* engine : kEngines) {
    Reader reader(engine, 2, 0);
    reader.add(file.path(), kData.size());
    const auto failure = read_all(reader)->failure();
    CHECK(failure.has_value() && failure->index == 50 && failure->kind == FailureKind::kShort);
    CHECK(failure->expected == 1000 && failure->found == 500);
    const auto beyond = submit(reader, {copy_read(90000, 0, 10)}, 10);
    CHECK(finish(beyond) && beyond->failure()->found == 0);
  }
}

TEST(a_refused_map_or_stat_is_an_error_of_the_read) {
  const TempFile file(kData);
  FakeSys fake;
  fake.table.mmap = [](void*, std::size_t, int, int, int, off_t) -> void* {
    return errno = ENODEV, MAP_FAILED;
  };
  Reader reader("mmap", 2, 0);
  reader.add(file.path(), kData.size());
  CHECK(read_all(reader)->failure()->error == ENODEV);
  fake.table.fstat = [](int, struct stat*) { return errno = EOVERFLOW, -1; };
  CHECK(read_all(reader)->failure()->error == EOVERFLOW);
  fake.table = real_sys();
  CHECK(is_whole(read_all(reader)));  // nothing of the failures stays
}

TEST(refused_advice_changes_nothing) {
  const TempFile file(kData);
  FakeSys fake;
  fake.table.madvise = [](void*, std::size_t, int) { return errno = EINVAL, -1; };
  fake.table.fadvise = [](int, off_t, off_t, int) { return ESPIPE; };
  for (const char* engine : kEngines) {
    Reader reader(engine, 2, 0);
    reader.add(file.path(), kData.size());
    CHECK(is_whole(read_all(reader)));
  }
}

TEST(every_allocation_that_fails_is_a_failure_of_its_batch_alone) {
  const TempFile file(kData);
  for (const char* engine : kEngines) {
    for (g_nth = 0; g_nth < 4; ++g_nth) {
      trim_cache();
      FakeSys fake;
      g_calls = 0;
      fake.table.allocate = [](std::size_t alignment, std::size_t size) -> void* {
        return g_calls++ == g_nth ? nullptr : real_sys().allocate(alignment, size);
      };
      Reader reader(engine, 2, 0);
      reader.add(file.path(), kData.size());
      int good = 0;
      for (int round = 0; round < 3; ++round) {
        const auto batch = read_all(reader);
        const auto failure = batch->failure();
        if (!failure.has_value()) {
          ++good;
        } else {
          // Of the outputs, or of what a thread of the engine keeps.
          CHECK(failure->kind == FailureKind::kMemory && failure->expected > 0);
        }
      }
      CHECK(good >= 2);
    }
  }
  trim_cache();
}
