// The pread engine: one blocking call a read, many threads. Right for cold disks, for network file
// systems, and in forked children, which must not share a parent's maps of a file that may be cut short.
#include <algorithm>
#include <cerrno>

#include "shufflestore/crc32c.hpp"
#include "shufflestore/engine.hpp"
#include "shufflestore/error.hpp"
#include "shufflestore/widen.hpp"

namespace shufflestore {
namespace {

// Bytes widened at a time: a multiple of every integer, small beside a second-level cache.
constexpr std::size_t kStage = 64 << 10;

struct State final : EngineState {
  Buffer stage;  // allocated by the first widening
};

// Reads until `size` bytes are there or the file ends; returns how many came. Throws IoError.
std::uint64_t read_fully(const OpenFile& file, std::uint8_t* to, std::uint64_t size, std::uint64_t offset) {
  std::uint64_t done = 0;
  while (done < size) {
    // Linux moves at most this much in one call.
    const std::size_t ask = std::min<std::uint64_t>(size - done, 0x7ffff000);
    const ssize_t got = sys().pread(file.fd.get(), to + done, ask, static_cast<off_t>(offset + done));
    if (got == 0) break;
    if (got > 0) {
      done += static_cast<std::uint64_t>(got);
    } else if (errno != EINTR) {
      throw IoError(errno, "", "cannot read");
    }
  }
  return done;
}

struct Came {
  std::uint64_t bytes;
  std::uint32_t crc;
};

Came read_copy(const OpenFile& file, const Read& read, std::uint8_t* to) {
  const std::uint64_t bytes = read_fully(file, to, read.size, read.offset);
  return {.bytes = bytes, .crc = read.has_crc() ? crc32c(to, bytes) : 0};
}

Came read_widening(State& state, const OpenFile& file, const Read& read, std::uint8_t* to) {
  const Widening& widen = widening(read.op);
  if (state.stage.data() == nullptr) state.stage = Buffer::allocate(kStage);
  Came came{.bytes = 0, .crc = 0};
  while (came.bytes < read.size) {
    const std::size_t ask = std::min<std::uint64_t>(read.size - came.bytes, kStage);
    const std::uint64_t got = read_fully(file, state.stage.data(), ask, read.offset + came.bytes);
    if (read.has_crc()) came.crc = crc32c(state.stage.data(), got, came.crc);
    const std::size_t count = got / widen.source;
    widen.run(to, state.stage.data(), count);
    to += count * widen.target;
    came.bytes += got;
    if (got < ask) break;
  }
  return came;
}

void read_one(State& state, Worker& worker, Pending& batch, std::size_t index) {
  const Read& read = batch.read(index);
  std::uint8_t* const to = batch.slot(read);
  if (read.op == kZero) {
    std::fill_n(to, read.size, std::uint8_t{0});
    return;
  }
  Came came{.bytes = 0, .crc = 0};
  if (read.size > 0) {
    const FileTable::Pin pin(worker.files, worker.number, read.file);
    const OpenFile& file = pin.file();
    came = read.op == kCopy ? read_copy(file, read, to) : read_widening(state, file, read, to);
  }
  if (came.bytes < read.size) {
    batch.fail(short_read(index, read, read.offset + came.bytes));
  } else {
    check_crc(worker, batch, index, came.crc);
  }
}

void execute(EngineState& state, Worker& worker, Pending& batch, Pending::Range range) {
  for (std::size_t index = range.begin; index < range.end; ++index) {
    try {
      read_one(static_cast<State&>(state), worker, batch, index);
    } catch (const IoError& error) {
      batch.fail({.index = index, .kind = FailureKind::kErrno, .error = error.error()});
    } catch (const std::bad_alloc&) {
      batch.fail({.index = index, .kind = FailureKind::kMemory, .expected = kStage});
    }
  }
}

}  // namespace

const Engine kPreadEngine = {
    .name = "pread",
    .cut = {.access = Access::kDescriptor, .most_reads = 4, .about_bytes = 256 << 10},
    .available = [] { return std::string(); },
    .open = []() -> std::unique_ptr<EngineState> { return std::make_unique<State>(); },
    .execute = execute,
    .close = [](std::unique_ptr<EngineState>) noexcept {},
};

}  // namespace shufflestore
