// What only the io_uring engines do: a ring that is refused, full or interrupted, reads larger than their
// aligned memory, many files at once.
#include <atomic>
#include <cerrno>
#include <cstring>

#include "check.hpp"
#include "scene.hpp"
#include "shufflestore/error.hpp"
#include "shufflestore/widen.hpp"

using namespace scene;

namespace {

const char* const kUring[] = {"io_uring", "io_uring_direct"};
const Bytes kData = noise(3 << 20);
std::atomic<int> g_calls{0};

// Reads of many sizes at odd places, one after another in the output; the longest is much of the file.
std::vector<Read> odd_reads() {
  std::vector<Read> reads;
  std::uint64_t slot = 0;
  std::uint64_t offset = 1;
  for (const std::uint64_t size : {1u, 4095u, 4096u, 4097u, 0u, 65536u, 65537u, 300000u, 2000000u, 7u}) {
    for (int i = 0; i < 40 && size < 5000; ++i) {
      offset = (offset * 7919 + 13) % (kData.size() - size);
      reads.push_back(checked(copy_read(offset, slot, size), kData));
      slot += size;
    }
    reads.push_back(checked(copy_read(kData.size() - size, slot, size), kData));  // up to the very end
    slot += size;
  }
  return reads;
}

bool comes_out_right(Reader& reader) {
  const std::vector<Read> reads = odd_reads();
  const auto batch = submit(reader, reads, reads.back().slot + reads.back().size);
  if (!finish(batch) || batch->failure().has_value()) return false;
  const auto out = batch->take();
  for (const Read& read : reads)
    if (std::memcmp(out[0].data() + read.slot, kData.data() + read.offset, read.size) != 0) return false;
  return true;
}

}  // namespace

TEST(reads_of_any_size_at_any_place_come_whole) {
  const TempFile file(kData);
  for (const char* engine : kUring) {
    Reader reader(engine, 2, 0);
    reader.add(file.path(), kData.size());
    for (int round = 0; round < 5; ++round) CHECK(comes_out_right(reader));
  }
}

TEST(a_system_that_refuses_rings_makes_the_engine_unavailable) {
  for (const int error : {EPERM, ENOSYS, ENOMEM}) {
    static int refusal;
    refusal = error;
    FakeSys fake;
    fake.table.io_uring_setup = [](unsigned, struct io_uring_params*) { return errno = refusal, -1; };
    for (const char* engine : kUring) {
      bool is_told = false;
      try {
        Reader reader(engine, 1, 0);
      } catch (const IoError& refused) {
        is_told = refused.error() == ENOTSUP &&
                  std::string(refused.what()).find(std::strerror(error)) != std::string::npos;
      }
      CHECK(is_told);
    }
  }
}

TEST(an_older_system_is_asked_in_older_manners) {
  const TempFile file(kData);
  FakeSys fake;
  fake.table.io_uring_setup = [](unsigned entries, struct io_uring_params* parameters) {
    static_assert(sizeof(unsigned) == 4);
    unsigned flags = 0;
    std::memcpy(&flags, reinterpret_cast<const char*>(parameters) + 8, 4);  // third word
    if (flags != 0) return errno = EINVAL, -1;
    return real_sys().io_uring_setup(entries, parameters);
  };
  Reader reader("io_uring", 1, 0);
  reader.add(file.path(), kData.size());
  CHECK(comes_out_right(reader));
}

TEST(a_full_or_interrupted_ring_is_asked_again) {
  const TempFile file(kData);
  for (const char* engine : kUring) {
    FakeSys fake;
    g_calls = 0;
    fake.table.io_uring_enter = [](int ring, unsigned wanted, unsigned least, unsigned flags) {
      switch (g_calls++ % 5) {
        case 0:
          return errno = EINTR, -1;
        case 1:
          return errno = EAGAIN, -1;
        case 2:
          return errno = EBUSY, -1;
        case 3:
          wanted = wanted > 1 ? 1 : wanted;  // takes one and leaves the rest
          break;
        default:
          break;
      }
      return real_sys().io_uring_enter(ring, wanted, wanted == 0 ? least : 0, flags);
    };
    Reader reader(engine, 1, 0);
    reader.add(file.path(), kData.size());
    CHECK(comes_out_right(reader));
    CHECK(g_calls > 5);
  }
}

TEST(a_ring_that_never_takes_a_read_fails_the_batch_and_the_reader_goes_on) {
  const TempFile file(kData);
  FakeSys fake;
  fake.table.io_uring_enter = [](int ring, unsigned wanted, unsigned least, unsigned flags) {
    if (wanted > 0) return errno = EINVAL, -1;
    return real_sys().io_uring_enter(ring, wanted, least, flags);
  };
  Reader reader("io_uring", 1, 0);
  reader.add(file.path(), kData.size());
  const auto batch =
      submit(reader, {checked(copy_read(0, 0, 100), kData), checked(copy_read(5, 100, 9), kData)}, 109);
  CHECK(finish(batch) && batch->failure()->kind == FailureKind::kErrno);
  CHECK(batch->failure()->index == 0 && batch->failure()->error == EINVAL);
  fake.table.io_uring_enter = real_sys().io_uring_enter;
  CHECK(comes_out_right(reader));
}

TEST(more_files_than_may_be_open_are_read_through_few_descriptors) {
  std::vector<TempFile*> files;
  Bytes all;
  for (std::uint64_t i = 0; i < 60; ++i) {
    const Bytes data = noise(9000, i + 1);
    files.push_back(new TempFile(data));
    all.insert(all.end(), data.begin(), data.end());
  }
  for (const char* engine : kUring) {
    Reader reader(engine, 2, 8);
    for (const TempFile* file : files) reader.add(file->path(), 9000);
    std::vector<Read> reads;
    for (std::uint32_t i = 0; i < 3000; ++i) {
      const std::uint32_t file = i * 7919 % 60;
      Read read = copy_read(i % 4000, i * std::uint64_t{100}, 100, file);
      read.crc = crc32c(all.data() + file * 9000 + read.offset, 100);
      read.flags = kHasCrc;
      reads.push_back(read);
    }
    const auto batch = submit(reader, reads, 300000);
    CHECK(finish(batch) && !batch->failure().has_value());
    CHECK(reader.counters().open_files <= 10);
  }
  for (const TempFile* file : files) delete file;
}

TEST(a_file_system_without_direct_reads_is_read_through_its_cache) {
  const TempFile file(kData);
  FakeSys fake;
  fake.table.open = [](const char* path, int flags) {
    if ((flags & 040000) != 0) return errno = EINVAL, -1;  // O_DIRECT
    return real_sys().open(path, flags);
  };
  Reader reader("io_uring_direct", 1, 0);
  reader.add(file.path(), kData.size());
  CHECK(comes_out_right(reader));
}
