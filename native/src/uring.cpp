// The io_uring engines: hundreds of reads in flight from one thread. For disks, where the data is larger than
// memory. The plain one reads through the page cache straight into the slots. The direct one goes around
// the cache, through aligned memory of its own: half the work for the processor, and nothing is kept that is
// not read twice anyhow.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <optional>
#include <vector>

#include "shufflestore/crc32c.hpp"
#include "shufflestore/engine.hpp"
#include "shufflestore/error.hpp"
#include "shufflestore/widen.hpp"
#include "uring_ring.hpp"

namespace shufflestore {
namespace {

// Measured on a virtual disk, 2 KB records: 64 in flight give 0.9 of what 256 give, 512 no more.
constexpr unsigned kDepth = 256;
constexpr unsigned kDirectDepth = 128;
// What O_DIRECT must be aligned to: the largest block of today's disks, and the page.
constexpr std::uint64_t kBlock = 4096;
// Aligned memory of a direct read; a larger one goes piece by piece.
constexpr std::uint64_t kBounce = 64 << 10;
// Linux moves at most this much in one call.
constexpr std::uint64_t kMostBytes = 0x7ffff000;
// Bytes widened at a time.
constexpr std::size_t kStage = 16 << 10;
constexpr std::size_t kManyFiles = 512;
constexpr unsigned kAtOnce = 16;  // reads waited for where there is no room for more
constexpr int kAttempts = 2000;   // of a millisecond each, while the system has no room for a read

// A read that has started and not ended.
struct Flight {
  std::shared_ptr<Pending> batch;
  std::size_t index = 0;
  std::uint64_t done = 0;  // bytes that have come
  std::uint32_t crc = 0;   // of those, where the read is direct
};

struct State final : EngineState {
  State(unsigned depth, bool direct) : ring(depth), flights(depth), stage(Buffer::allocate(kStage)) {
    for (unsigned i = depth; i > 0; --i) idle.push_back(i - 1);
    again.reserve(depth);
    if (!direct) return;
    bounce = Buffer::allocate(depth * kBounce + kBlock);
    const auto at = reinterpret_cast<std::uintptr_t>(bounce.data());
    aligned = bounce.data() + (kBlock - at % kBlock) % kBlock;
  }

  bool is_direct() const noexcept { return aligned != nullptr; }
  std::size_t in_flight() const noexcept { return flights.size() - idle.size(); }

  Ring ring;
  std::vector<Flight> flights;
  std::vector<unsigned> idle;   // flights that are free
  std::vector<unsigned> again;  // those that must be asked for once more
  Buffer stage;
  Buffer bounce;
  std::uint8_t* aligned = nullptr;
};

// A read that widens comes in at the end of its slot and is widened towards the front: an element is always
// stored at or before where it was loaded.
std::uint8_t* narrow_place(const Pending& batch, const Read& read) noexcept {
  std::uint8_t* const slot = batch.slot(read);
  if (read.op == kCopy) return slot;
  const Widening& widen = widening(read.op);
  return slot + read.size / widen.source * (widen.target - widen.source);
}

// Through the stage, since the widening may not read what it writes.
void widen_in_place(State& state, const Pending& batch, const Read& read) noexcept {
  const Widening& widen = widening(read.op);
  const std::uint8_t* from = narrow_place(batch, read);
  std::uint8_t* to = batch.slot(read);
  for (std::uint64_t left = read.size; left > 0;) {
    const std::size_t bytes = std::min<std::uint64_t>(left, kStage);
    std::memcpy(state.stage.data(), from, bytes);
    const std::size_t count = bytes / widen.source;
    widen.run(to, state.stage.data(), count);
    to += count * widen.target;
    from += bytes;
    left -= bytes;
  }
}

void end_flight(State& state, Worker& worker, unsigned number) noexcept {
  Flight& flight = state.flights[number];
  const Read& read = flight.batch->read(flight.index);
  ended(worker, *flight.batch, 1, read.op == kZero ? 0 : read.size);
  flight.batch.reset();
  state.idle.push_back(number);
}

void fail_flight(State& state, Worker& worker, unsigned number, int error) noexcept {
  const Flight& flight = state.flights[number];
  flight.batch->fail({.index = flight.index, .kind = FailureKind::kErrno, .error = error});
  end_flight(state, worker, number);
}

// Puts what is missing of a read into the ring.
void put(State& state, unsigned number, int fd) noexcept {
  Flight& flight = state.flights[number];
  const Read& read = flight.batch->read(flight.index);
  const std::uint64_t first = read.offset + flight.done;
  const std::uint64_t left = read.size - flight.done;
  if (!state.is_direct()) {
    const auto size = static_cast<std::uint32_t>(std::min(left, kMostBytes));
    state.ring.read(fd, narrow_place(*flight.batch, read) + flight.done, size, first, number);
    return;
  }
  const std::uint64_t begin = first / kBlock * kBlock;
  const std::uint64_t end = (first + left + kBlock - 1) / kBlock * kBlock;
  const auto size = static_cast<std::uint32_t>(std::min(end - begin, kBounce));
  state.ring.read(fd, state.aligned + number * kBounce, size, begin, number);
}

// Takes what has come; true if it is all.
bool take_in(State& state, Worker& worker, unsigned number, std::uint32_t came) noexcept {
  Flight& flight = state.flights[number];
  const Read& read = flight.batch->read(flight.index);
  std::uint64_t fresh = came;
  if (state.is_direct()) {
    const std::uint64_t lead = (read.offset + flight.done) % kBlock;
    fresh = came > lead ? std::min<std::uint64_t>(came - lead, read.size - flight.done) : 0;
    const std::uint8_t* const from = state.aligned + number * kBounce + lead;
    std::uint8_t* const to = narrow_place(*flight.batch, read) + flight.done;
    if (read.has_crc()) {
      flight.crc = copy_crc32c(to, from, fresh, flight.crc);
    } else {
      std::memcpy(to, from, fresh);
    }
  }
  flight.done += fresh;
  if (flight.done < read.size) {
    if (fresh > 0) return false;
    flight.batch->fail(short_read(flight.index, read, read.offset + flight.done));
    return true;
  }
  if (read.has_crc()) {
    const std::uint32_t found =
        state.is_direct() ? flight.crc : crc32c(narrow_place(*flight.batch, read), read.size);
    check_crc(worker, *flight.batch, flight.index, found);
  }
  if (read.op != kCopy) widen_in_place(state, *flight.batch, read);
  return true;
}

// Works off the reads that have ended; those that came in part are noted, to be asked for again.
void work_off(State& state, Worker& worker) noexcept {
  Ring::Ended found{};
  while (state.ring.next(found)) {
    const auto number = static_cast<unsigned>(found.tag);
    const bool is_refused = found.result == -EINTR || found.result == -EAGAIN;
    if (found.result < 0 && !is_refused) {
      fail_flight(state, worker, number, -found.result);
    } else if (!is_refused && take_in(state, worker, number, static_cast<std::uint32_t>(found.result))) {
      end_flight(state, worker, number);
    } else {
      state.again.push_back(number);  // has room for all
    }
  }
}

// Hands over all that was put into the ring. Until the system has accepted a read, and with that its own hold
// of the file, the caller keeps the file open. A system that has no room is asked again for some seconds;
// what it then still refuses fails.
void submit(State& state, Worker& worker) noexcept {
  int error = 0;
  for (int attempt = 0; state.ring.is_waiting() && attempt < kAttempts; ++attempt) {
    error = state.ring.enter(0);
    if (error == 0 || error == EINTR) continue;
    if (error != EAGAIN && error != EBUSY && error != ENOMEM) break;
    work_off(state, worker);
    const timespec moment{.tv_sec = 0, .tv_nsec = 1'000'000};
    ::nanosleep(&moment, nullptr);
  }
  std::uint64_t tag = 0;
  while (state.ring.take_back(tag))
    fail_flight(state, worker, static_cast<unsigned>(tag), error != 0 ? error : EAGAIN);
}

// Opens the file of a read by `open` and puts the read into the ring; the read fails if that fails.
template <typename Open>
void ask(State& state, Worker& worker, unsigned number, Open&& open) noexcept {
  Flight& flight = state.flights[number];
  try {
    put(state, number, open(flight.batch->read(flight.index).file));
  } catch (const IoError& error) {
    fail_flight(state, worker, number, error.error());
  } catch (const std::bad_alloc&) {
    flight.batch->fail({.index = flight.index, .kind = FailureKind::kMemory, .expected = sizeof(OpenFile)});
    end_flight(state, worker, number);
  }
}

// One read by itself: keeps no file open but its own, and that no longer than it must.
void ask_alone(State& state, Worker& worker, unsigned number) noexcept {
  std::optional<FileTable::Pin> pin;
  ask(state, worker, number, [&](std::uint32_t file) {
    pin.emplace(worker.files, worker.number, file);
    return pin->file().fd.get();
  });
  submit(state, worker);
}

// Waits until `least` reads have ended, without holding any file open, and works off those that have.
void collect(State& state, Worker& worker, unsigned least) noexcept {
  state.ring.enter(least);  // refused or interrupted, the caller comes back
  work_off(state, worker);
  while (!state.again.empty()) {
    const unsigned number = state.again.back();
    state.again.pop_back();
    ask_alone(state, worker, number);
  }
}

void start(EngineState& opaque, Worker& worker, const std::shared_ptr<Pending>& batch,
           Pending::Range range) noexcept {
  State& state = static_cast<State&>(opaque);
  // A visit keeps every file open that it meets. Where few may be open, each read comes alone.
  const bool is_many = worker.files.max_open() >= kManyFiles;
  for (std::size_t index = range.begin; index < range.end;) {
    if (state.idle.empty()) collect(state, worker, kAtOnce);
    std::optional<FileTable::Visit> visit;
    if (is_many) visit.emplace(worker.files, worker.number);
    for (; index < range.end && !state.idle.empty(); ++index) {
      const unsigned number = state.idle.back();
      state.idle.pop_back();
      state.flights[number] = {.batch = batch, .index = index};
      const Read& read = batch->read(index);
      if (read.op == kZero) std::memset(batch->slot(read), 0, read.size);
      if (read.op == kZero || read.size == 0) {
        end_flight(state, worker, number);
      } else if (is_many) {
        ask(state, worker, number, [&](std::uint32_t file) { return visit->open(file).fd.get(); });
      } else {
        ask_alone(state, worker, number);
      }
    }
    submit(state, worker);
    visit.reset();
    collect(state, worker, 0);
  }
}

bool reap(EngineState& opaque, Worker& worker) noexcept {
  State& state = static_cast<State&>(opaque);
  if (state.in_flight() > 0) collect(state, worker, 1);
  return state.in_flight() > 0;
}

std::string why_not(unsigned depth) {
  try {
    const Ring probe(depth);
    return {};
  } catch (const IoError& error) {
    return "io_uring is refused here (" + std::string(std::strerror(error.error())) + ")";
  }
}

}  // namespace

const Engine kUringEngine = {
    .name = "io_uring",
    .cut = {.access = Access::kDescriptor, .most_reads = 32, .about_bytes = 1 << 20},
    .available = [] { return why_not(kDepth); },
    .open = []() -> std::unique_ptr<EngineState> { return std::make_unique<State>(kDepth, false); },
    .execute = nullptr,
    .close = [](std::unique_ptr<EngineState>) noexcept {},
    .start = start,
    .reap = reap,
};

const Engine kUringDirectEngine = {
    .name = "io_uring_direct",
    .cut = {.access = Access::kDirect, .most_reads = 32, .about_bytes = 1 << 20},
    .available = [] { return why_not(kDirectDepth); },
    .open = []() -> std::unique_ptr<EngineState> { return std::make_unique<State>(kDirectDepth, true); },
    .execute = nullptr,
    .close = [](std::unique_ptr<EngineState>) noexcept {},
    .start = start,
    .reap = reap,
};

}  // namespace shufflestore
