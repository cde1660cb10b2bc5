// The mmap engine: copies out of mapped files, checking on the way. For data in the page cache.
//
// A stretch of reads is first resolved to addresses, then copied in one sweep under the SIGBUS guard, with
// the lines of later records on their way while this one is copied, then judged.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "shufflestore/crc32c.hpp"
#include "shufflestore/engine.hpp"
#include "shufflestore/error.hpp"
#include "shufflestore/guard.hpp"
#include "shufflestore/widen.hpp"

namespace shufflestore {
namespace {

constexpr std::size_t kMostReads = 32;
constexpr std::size_t kLine = 64;
// A read this far ahead has its first lines fetched; the processor's own prefetcher sees the run and does the
// rest, with more lines in flight than instructions can have. Measured on 2 KB records beyond all caches, two
// threads: none 2.8 M/s, all lines of the next two 3.1, these 3.5.
constexpr std::size_t kAhead = 6;
constexpr std::size_t kLinesAhead = 8;
// Bytes widened at a time: stay in the first-level cache beside their widened form.
constexpr std::size_t kStage = 4 << 10;

struct State final : EngineState {
  alignas(64) std::array<std::uint8_t, kStage> stage;
};

// One read, resolved. What the sweep found out is filled in by it.
struct Item {
  const std::uint8_t* from;
  std::uint8_t* to;
  std::uint64_t size;
  const Widening* widen;  // null: copy
  const OpenFile* file;
  std::size_t index;
  bool has_crc;
  bool is_suspect;  // without a checksum: its last page ends in zeros
  std::uint32_t crc;
};

struct Sweep {
  std::array<Item, kMostReads> items;
  std::size_t count = 0;
  volatile std::size_t next = 0;  // the item being copied: what a fault leaves behind
  std::uint8_t* stage = nullptr;
};

// The last bytes of the page that the item ends in.
const std::uint8_t* page_tail(const Item& item) noexcept {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto last = reinterpret_cast<std::uintptr_t>(item.from) + item.size - 1;
  return reinterpret_cast<const std::uint8_t*>((last | (page - 1)) + 1 - kLine);
}

bool is_zero(const std::uint8_t* line) noexcept {
  std::array<std::uint64_t, kLine / sizeof(std::uint64_t)> words;
  std::memcpy(words.data(), line, kLine);
  std::uint64_t any = 0;
  for (const std::uint64_t word : words) any |= word;
  return any == 0;
}

void prefetch(const Item& item) noexcept {
  if (!item.has_crc) __builtin_prefetch(page_tail(item), 0, 2);
  const std::size_t lines = std::min<std::uint64_t>(item.size / kLine + 1, kLinesAhead);
  for (std::size_t i = 0; i < lines; ++i) __builtin_prefetch(item.from + i * kLine, 0, 2);
}

// Chunk by chunk through the stage, so that the map is read once and the CRC is over what was read.
void widen_item(Item& item, std::uint8_t* stage) noexcept {
  std::uint8_t* to = item.to;
  std::uint32_t crc = 0;
  for (std::uint64_t done = 0; done < item.size;) {
    const std::size_t chunk = std::min<std::uint64_t>(item.size - done, kStage);
    if (item.has_crc) {
      crc = copy_crc32c(stage, item.from + done, chunk, crc);
    } else {
      std::memcpy(stage, item.from + done, chunk);
    }
    const std::size_t count = chunk / item.widen->source;
    item.widen->run(to, stage, count);
    to += count * item.widen->target;
    done += chunk;
  }
  item.crc = crc;
}

// Runs under the guard: holds nothing that has a destructor.
void sweep(void* context, Guard& guard) noexcept {
  Sweep& work = *static_cast<Sweep*>(context);
  for (std::size_t i = work.next; i < work.count; ++i) {
    if (i + kAhead < work.count) prefetch(work.items[i + kAhead]);
    Item& item = work.items[i];
    work.next = i;
    const std::uint8_t* const tail = page_tail(item);
    guard.reads(item.from, static_cast<std::size_t>(tail + kLine - item.from));
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (item.widen != nullptr) {
      widen_item(item, work.stage);
    } else if (item.has_crc) {
      item.crc = copy_crc32c(item.to, item.from, item.size);
    } else {
      std::memcpy(item.to, item.from, item.size);
    }
    if (!item.has_crc) item.is_suspect = is_zero(tail);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  work.next = work.count;
}

// Fills in the item of a read that has bytes to copy; false if there is nothing (more) to do.
bool resolve(FileTable::Visit& visit, Pending& batch, std::size_t index, Item& item) {
  const Read& read = batch.read(index);
  std::uint8_t* const to = batch.slot(read);
  if (read.op == kZero) {
    std::memset(to, 0, read.size);
    return false;
  }
  if (read.size == 0) {
    return false;
  }
  try {
    const OpenFile& file = visit.open(read.file);
    if (read.offset > file.size || read.size > file.size - read.offset) {
      batch.fail(short_read(index, read, file.size));
      return false;
    }
    file.regions.touch(file.map.data(), file.map.size(), read.offset, read.size);
    item = {.from = file.map.data() + read.offset,
            .to = to,
            .size = read.size,
            .widen = read.op == kCopy ? nullptr : &widening(read.op),
            .file = &file,
            .index = index,
            .has_crc = read.has_crc(),
            .is_suspect = false,
            .crc = 0};
    return true;
  } catch (const IoError& error) {
    batch.fail({.index = index, .kind = FailureKind::kErrno, .error = error.error()});
  } catch (const std::bad_alloc&) {
    batch.fail({.index = index, .kind = FailureKind::kMemory, .expected = sizeof(OpenFile)});
  }
  return false;
}

// The map could not give the bytes: the file was cut short, or the device failed.
void fail_fault(Worker& worker, Pending& batch, const Item& item) noexcept {
  const Read& read = batch.read(item.index);
  const std::uint64_t length = worker.files.length_now(read.file, *item.file);
  if (length >= read.offset + read.size) {
    batch.fail({.index = item.index, .kind = FailureKind::kErrno, .error = EIO});
  } else {
    batch.fail(short_read(item.index, read, length));
  }
}

// The length of a file after the sweep, asked for once however many reads it served.
struct Length {
  const OpenFile* file = nullptr;
  std::uint64_t bytes = 0;
};

// A file cut within its last page reads as zeros up to the end of that page, and faults beyond. So a read
// that suffered lies in a page that ends in zeros; without a checksum, that is when the length is asked for.
void judge(Worker& worker, Pending& batch, const Item& item, Length& length) noexcept {
  if (item.has_crc) {
    check_crc(worker, batch, item.index, item.crc);
  } else if (item.is_suspect) {
    const Read& read = batch.read(item.index);
    if (length.file != item.file)
      length = {.file = item.file, .bytes = worker.files.length_now(read.file, *item.file)};
    if (length.bytes < read.offset + read.size) batch.fail(short_read(item.index, read, length.bytes));
  }
}

void execute(EngineState& state, Worker& worker, Pending& batch, Pending::Range range) {
  FileTable::Visit visit(worker.files, worker.number);
  Sweep work;
  work.stage = static_cast<State&>(state).stage.data();
  for (std::size_t index = range.begin; index < range.end; ++index) {
    if (!resolve(visit, batch, index, work.items[work.count])) continue;
    if (work.count < kAhead) prefetch(work.items[work.count]);
    ++work.count;
  }
  Guard guard;
  while (!guard.run(sweep, &work)) {
    Item& faulted = work.items[work.next];
    fail_fault(worker, batch, faulted);
    faulted.size = 0;  // judged
    work.next = work.next + 1;
  }
  Length length;
  for (std::size_t i = 0; i < work.count; ++i) {
    if (work.items[i].size > 0) judge(worker, batch, work.items[i], length);
  }
}

}  // namespace

const Engine kMmapEngine = {
    .name = "mmap",
    .cut = {.access = Access::kMap, .most_reads = kMostReads, .about_bytes = 128 << 10},
    .available = [] { return std::string(); },
    .open = []() -> std::unique_ptr<EngineState> { return std::make_unique<State>(); },
    .execute = execute,
    .close = [](std::unique_ptr<EngineState>) noexcept {},
};

}  // namespace shufflestore
