#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <csetjmp>
#include <csignal>

#include "check.hpp"
#include "scene.hpp"

using namespace scene;

namespace {

sigjmp_buf g_back;
volatile int g_chained = 0;
void jump_back(int) {
  g_chained = g_chained + 1;
  siglongjmp(g_back, 1);
}

// A handler with faulthandler's manners: reports, brings the one before it back, raises again.
struct sigaction g_before;
void like_faulthandler(int signal) {
  ::sigaction(SIGBUS, &g_before, nullptr);
  ::raise(signal);
}

void fault_here() {
  static const TempFile file(noise(8192));  // static: a handler may jump out of here
  file.truncate(8192);
  const int fd = ::open(file.path().c_str(), O_RDONLY);
  auto* const at = static_cast<volatile std::uint8_t*>(::mmap(nullptr, 8192, PROT_READ, MAP_SHARED, fd, 0));
  ::close(fd);
  file.truncate(0);
  (void)at[5000];
}

}  // namespace

TEST(a_file_cut_under_its_map_is_short_with_and_without_a_checksum) {
  for (int round = 0; round < 40; ++round) {
    const std::size_t size = 40960;
    Bytes data = noise(size, 3);
    for (std::uint8_t& byte : data) byte |= 1;  // no zero anywhere
    const TempFile file(data);
    Reader reader("mmap", 2, 0);
    reader.add(file.path(), size);
    const auto warm = submit(reader, {copy_read(0, 0, size)}, size);
    CHECK(finish(warm) && !warm->failure().has_value());
    const std::size_t cut = 1 + static_cast<std::size_t>(round) * 1013;
    file.truncate(cut);
    for (const bool with_crc : {false, true}) {
      std::vector<Read> reads;
      std::uint64_t first_short = ~std::uint64_t{0};
      for (std::uint64_t at = 0; at + 1000 <= size; at += 1000) {
        const Read read = copy_read(at, at, 1000);
        reads.push_back(with_crc ? checked(read, data) : read);
        if (first_short == ~std::uint64_t{0} && at + 1000 > cut) first_short = reads.size() - 1;
      }
      const auto batch = submit(reader, reads, size);
      CHECK(finish(batch));
      const auto failure = batch->failure();
      CHECK(failure.has_value() && failure->index == first_short);
      const bool same_page = (cut - 1) / 4096 == (first_short * 1000 + 999) / 4096;
      if (with_crc && same_page && cut % 4096 != 0) {
        CHECK(failure->kind == FailureKind::kChecksum);
      } else {
        CHECK(failure->kind == FailureKind::kShort);
        CHECK(failure->expected == 1000 && failure->found == cut - first_short * 1000);
      }
    }
  }
}

TEST(a_cut_while_widening_is_short) {
  const Bytes data = noise(20000);
  const TempFile file(data);
  Reader reader("mmap", 1, 0);
  reader.add(file.path(), data.size());
  CHECK(finish(submit(reader, {copy_read(0, 0, 1)}, 1)));
  file.truncate(4096);
  Read read = copy_read(0, 0, 20000);
  read.op = 37;
  const auto batch = submit(reader, {read}, 80000);
  CHECK(finish(batch) && batch->failure()->kind == FailureKind::kShort && batch->failure()->found == 4096);
}

TEST(a_device_that_fails_under_the_map_is_an_io_error) {
  const Bytes data = noise(20000);
  const TempFile file(data);
  Reader reader("mmap", 1, 0);
  reader.add(file.path(), data.size());
  CHECK(finish(submit(reader, {copy_read(0, 0, 1)}, 1)));
  file.truncate(0);
  FakeSys fake;  // the length looks right: then it was not the file that was cut
  fake.table.stat = [](const char* path, struct stat* found) {
    const int result = real_sys().stat(path, found);
    found->st_size = 20000;
    return result;
  };
  const auto batch = submit(reader, {copy_read(8192, 0, 100)}, 100);
  CHECK(finish(batch) && batch->failure()->kind == FailureKind::kErrno && batch->failure()->error == EIO);
}

TEST(other_faults_go_to_the_handler_that_was_there) {
  struct sigaction ours {};
  ours.sa_handler = jump_back;
  ours.sa_flags = SA_NODEFER;
  ::sigaction(SIGBUS, &ours, nullptr);
  const Bytes data = noise(100);
  const TempFile file(data);
  Reader reader("mmap", 1, 0);
  reader.add(file.path(), data.size());
  CHECK(finish(submit(reader, {copy_read(0, 0, 100)}, 100)));  // installs the guard in front
  if (sigsetjmp(g_back, 1) == 0) fault_here();
  CHECK(g_chained == 1);
  // Somebody puts a handler in front of ours; the next submit takes the front again and keeps that one.
  ::sigaction(SIGBUS, &ours, nullptr);
  CHECK(finish(submit(reader, {copy_read(0, 0, 100)}, 100)));
  file.truncate(0);
  const auto cut = submit(reader, {copy_read(0, 0, 100)}, 100);
  CHECK(finish(cut) && cut->failure()->kind == FailureKind::kShort);
  CHECK(g_chained == 1);
  if (sigsetjmp(g_back, 1) == 0) fault_here();
  CHECK(g_chained == 2);
}

TEST(two_handlers_that_chain_to_each_other_still_end) {
  const Bytes data = noise(100);
  const TempFile file(data);
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    ::signal(SIGBUS, SIG_DFL);
    Reader reader("mmap", 1, 0);
    reader.add(file.path(), data.size());
    finish(submit(reader, {copy_read(0, 0, 100)}, 100));
    struct sigaction theirs {};
    theirs.sa_handler = like_faulthandler;
    theirs.sa_flags = SA_NODEFER;
    ::sigaction(SIGBUS, &theirs, &g_before);              // before it: ours
    finish(submit(reader, {copy_read(0, 0, 100)}, 100));  // ours again, in front of theirs
    fault_here();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}
