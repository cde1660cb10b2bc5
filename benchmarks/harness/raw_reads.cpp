// The yardstick of cold reads: the same ranges of the same files as a loader reads, by a plain loop.
//
//   raw_reads LIST ENGINE WORKERS DEPTH SECONDS
//
// LIST holds lines "file PATH" and then, after a line "reads", 20 bytes a read: offset (8), size (8), file (4). ENGINE is pread
// (WORKERS threads that block), io_uring or io_uring_direct (WORKERS rings, each with DEPTH reads in flight).
// Bytes land in a few buffers of each worker and are looked at by nobody. Prints reads, bytes and seconds.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct __attribute__((packed)) Range {
  std::uint64_t offset;
  std::uint64_t size;
  std::uint32_t file;
};

std::vector<Range> g_reads;
std::vector<int> g_files;
std::uint64_t g_largest = 0;
std::atomic<std::size_t> g_next{0};
std::atomic<std::uint64_t> g_count{0};
std::atomic<std::uint64_t> g_bytes{0};
Clock::time_point g_end;
constexpr std::uint64_t kBlock = 4096;

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

bool next(std::size_t& index) {
  if (Clock::now() >= g_end) return false;
  index = g_next.fetch_add(1);
  return index < g_reads.size();
}

void note(const Range& range) {
  g_count.fetch_add(1, std::memory_order_relaxed);
  g_bytes.fetch_add(range.size, std::memory_order_relaxed);
}

char* memory(std::size_t size) {
  void* const block = std::aligned_alloc(kBlock, (size + kBlock - 1) / kBlock * kBlock);
  if (block == nullptr) fail("aligned_alloc");
  return static_cast<char*>(block);
}

void block() {
  char* const to = memory(g_largest);
  for (std::size_t i = 0; next(i);) {
    const Range& range = g_reads[i];
    const auto offset = static_cast<off_t>(range.offset);
    if (pread(g_files[range.file], to, range.size, offset) != static_cast<ssize_t>(range.size)) fail("pread");
    note(range);
  }
}

void ring(unsigned depth, bool direct) {
  io_uring_params p{};
  p.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  const int fd = static_cast<int>(syscall(SYS_io_uring_setup, depth, &p));
  if (fd < 0) fail("io_uring_setup");
  const auto map = [&](std::size_t size, std::uint64_t what) {
    void* const at =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, static_cast<off_t>(what));
    if (at == MAP_FAILED) fail("mmap");
    return static_cast<char*>(at);
  };
  char* const sq = map(p.sq_off.array + p.sq_entries * 4, IORING_OFF_SQ_RING);
  char* const cq = map(p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe), IORING_OFF_CQ_RING);
  auto* const wanted = reinterpret_cast<io_uring_sqe*>(map(p.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES));
  const auto word = [](char* at, unsigned offset) { return reinterpret_cast<unsigned*>(at + offset); };
  unsigned *const tail = word(sq, p.sq_off.tail), *const order = word(sq, p.sq_off.array);
  unsigned *const head = word(cq, p.cq_off.head), *const done = word(cq, p.cq_off.tail);
  const unsigned mask = *word(sq, p.sq_off.ring_mask), ended = *word(cq, p.cq_off.ring_mask);
  auto* const found = reinterpret_cast<io_uring_cqe*>(cq + p.cq_off.cqes);
  const std::uint64_t slot = (g_largest / kBlock + 3) * kBlock;  // aligned, with a block of room at each end
  char* const to = memory(slot * depth);
  std::vector<unsigned> idle;
  std::vector<std::size_t> of(depth);
  for (unsigned i = 0; i < depth; ++i) idle.push_back(i);
  unsigned at = *tail;
  for (bool over = false; !over || idle.size() < depth;) {
    unsigned fresh = 0;
    while (!over && !idle.empty()) {
      std::size_t index = 0;
      if (!next(index)) {
        over = true;
        break;
      }
      const Range& range = g_reads[index];
      const unsigned number = idle.back();
      idle.pop_back();
      of[number] = index;
      std::uint64_t offset = range.offset;
      std::uint64_t size = range.size;
      if (direct) {
        const std::uint64_t end = (offset + size + kBlock - 1) / kBlock * kBlock;
        offset = offset / kBlock * kBlock;
        size = end - offset;
      }
      io_uring_sqe& entry = wanted[at & mask];
      std::memset(&entry, 0, sizeof entry);
      entry.opcode = IORING_OP_READ;
      entry.fd = g_files[range.file];
      entry.addr = reinterpret_cast<std::uint64_t>(to + number * slot);
      entry.len = static_cast<unsigned>(size);
      entry.off = offset;
      entry.user_data = number;
      order[at & mask] = at & mask;
      ++at;
      ++fresh;
    }
    __atomic_store_n(tail, at, __ATOMIC_RELEASE);
    if (idle.size() == depth) break;
    const auto flying = static_cast<unsigned>(depth - idle.size());
    const unsigned least = flying < 16 ? 1 : 16;
    if (syscall(SYS_io_uring_enter, fd, fresh, least, IORING_ENTER_GETEVENTS, nullptr, 0) < 0 && errno != EINTR)
      fail("io_uring_enter");
    unsigned h = *head;
    for (const unsigned last = __atomic_load_n(done, __ATOMIC_ACQUIRE); h != last; ++h) {
      const io_uring_cqe& one = found[h & ended];
      const Range& range = g_reads[of[one.user_data]];
      const std::uint64_t least_bytes = range.size + (direct ? range.offset % kBlock : 0);
      if (one.res < 0 || static_cast<std::uint64_t>(one.res) < least_bytes) {
        errno = one.res < 0 ? -one.res : EIO;
        fail("read");
      }
      note(range);
      idle.push_back(static_cast<unsigned>(one.user_data));
    }
    __atomic_store_n(head, h, __ATOMIC_RELEASE);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const std::string engine = argv[2];
  const bool direct = engine == "io_uring_direct";
  std::ifstream list(argv[1], std::ios::binary);
  for (std::string line; std::getline(list, line) && line != "reads";) {
    const int fd = open(line.substr(5).c_str(), O_RDONLY | (direct ? O_DIRECT : 0));
    if (fd < 0) fail(line.c_str());
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    g_files.push_back(fd);
  }
  for (Range range; list.read(reinterpret_cast<char*>(&range), sizeof range);) {
    g_reads.push_back(range);
    g_largest = std::max(g_largest, range.size);
  }
  const auto start = Clock::now();
  g_end = start + std::chrono::milliseconds(static_cast<long>(1000 * std::atof(argv[5])));
  std::vector<std::thread> workers;
  for (int i = 0; i < std::atoi(argv[3]); ++i) {
    workers.emplace_back([&] {
      if (engine == "pread") {
        block();
      } else {
        ring(static_cast<unsigned>(std::atoi(argv[4])), direct);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  std::printf("{\"records\": %llu, \"bytes\": %llu, \"seconds\": %.6f}\n",
              static_cast<unsigned long long>(g_count), static_cast<unsigned long long>(g_bytes), seconds);
}
