#include "shufflestore/buffer.hpp"

#include <sys/mman.h>

#include <array>
#include <bit>
#include <mutex>
#include <new>

#include "shufflestore/fork.hpp"
#include "shufflestore/sys.hpp"

namespace shufflestore {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::uint64_t kLargest = std::uint64_t{1} << 46;

// Stands before the data, in its own cache line, and links the block into the cache while it is free.
struct alignas(kAlignment) Header {
  std::size_t size_class;
  Header* next;
};
static_assert(sizeof(Header) == kAlignment);

// Four classes an octave, so at most a fifth of a block is slack.
struct SizeClass {
  std::size_t index;
  std::size_t bytes;
};

SizeClass size_class(std::uint64_t bytes) noexcept {
  const std::uint64_t wanted = bytes < 128 ? 128 : bytes;
  const auto shift = static_cast<unsigned>(std::bit_width(wanted - 1)) - 3;
  const std::uint64_t steps = ((wanted - 1) >> shift) + 1;  // in (4, 8]
  return {.index = (shift - 4) * 4 + steps - 5, .bytes = steps << shift};
}

std::size_t class_bytes(std::size_t index) noexcept {
  return (index % 4 + 5) << (index / 4 + 4);
}

// Guarded by process_lock(); has no destructor, as blocks may come back while the process ends.
struct Cache {
  struct List {
    Header* first;
    std::uint64_t used;  // when it last served or took a block
  };
  std::array<List, 200> lists;
  std::uint64_t clock;
  std::size_t bytes;
  std::size_t bound;
};
constinit Cache g_cache{.lists = {}, .clock = 0, .bytes = 0, .bound = kMostCached};

// Returns memory for a block, null where there is none. Huge ones come from the system itself and go back to
// it: the allocator's heaps would keep what is freed, up to as much again as is in use.
void* obtain(std::size_t bytes) noexcept {
  if (bytes < kHugePage) return sys().allocate(kAlignment, bytes);
  // More than enough, so that it can begin where a huge page does; the rest goes back at once.
  void* const mapped =
      sys().mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const start = static_cast<std::uint8_t*>(mapped);
  const std::size_t lead = (kHugePage - reinterpret_cast<std::uintptr_t>(start) % kHugePage) % kHugePage;
  if (lead != 0) sys().munmap(start, lead);
  sys().munmap(start + lead + bytes, kHugePage - lead);
  // Advice only: where it is refused the block is as good, just slower.
  sys().madvise(start + lead, bytes, MADV_HUGEPAGE);
  return start + lead;
}

void give_back(Header* block) noexcept {
  const std::size_t bytes = class_bytes(block->size_class);
  if (bytes < kHugePage) {
    sys().release(block);
  } else {
    sys().munmap(block, bytes);
  }
}

Header* pop(std::size_t index) noexcept {
  Cache::List& list = g_cache.lists[index];
  Header* const block = list.first;
  if (block == nullptr) return nullptr;
  list.first = block->next;
  g_cache.bytes -= class_bytes(index);
  return block;
}

// Takes blocks of the class that has been idle longest out of the cache until `room` bytes fit.
Header* make_room(std::size_t room) noexcept {
  Header* dropped = nullptr;
  while (g_cache.bytes > 0 && g_cache.bytes + room > g_cache.bound) {
    std::size_t idle = g_cache.lists.size();
    for (std::size_t i = 0; i < g_cache.lists.size(); ++i) {
      if (g_cache.lists[i].first == nullptr) continue;
      if (idle == g_cache.lists.size() || g_cache.lists[i].used < g_cache.lists[idle].used) idle = i;
    }
    if (idle == g_cache.lists.size()) break;
    Header* const block = pop(idle);
    block->next = dropped;
    dropped = block;
  }
  return dropped;
}

void release_all(Header* block) noexcept {
  while (block != nullptr) {
    Header* const next = block->next;
    give_back(block);
    block = next;
  }
}

}  // namespace

Buffer Buffer::allocate(std::uint64_t size) {
  if (size > kLargest) throw std::bad_alloc();
  const SizeClass wanted = size_class(size + sizeof(Header));
  Header* header = nullptr;
  {
    const std::scoped_lock lock(process_lock());
    g_cache.lists[wanted.index].used = ++g_cache.clock;
    header = pop(wanted.index);
  }
  if (header == nullptr) {
    void* const block = obtain(wanted.bytes);
    if (block == nullptr) throw std::bad_alloc();
    header = ::new (block) Header;
  }
  header->size_class = wanted.index;
  header->next = nullptr;
  return Buffer(reinterpret_cast<std::uint8_t*>(header + 1), static_cast<std::size_t>(size));
}

void release_block(std::uint8_t* data) noexcept {
  if (data == nullptr) return;
  Header* const header = reinterpret_cast<Header*>(data) - 1;
  const std::size_t bytes = class_bytes(header->size_class);
  Header* dropped = header;
  {
    const std::scoped_lock lock(process_lock());
    if (bytes <= g_cache.bound) {
      dropped = make_room(bytes);
      Cache::List& list = g_cache.lists[header->size_class];
      list.used = ++g_cache.clock;
      header->next = list.first;
      list.first = header;
      g_cache.bytes += bytes;
    }
  }
  release_all(dropped);
}

std::size_t cached_bytes() noexcept {
  const std::scoped_lock lock(process_lock());
  return g_cache.bytes;
}

void bound_cache(std::size_t bytes) noexcept {
  Header* dropped = nullptr;
  {
    const std::scoped_lock lock(process_lock());
    if (bytes >= g_cache.bound) return;
    g_cache.bound = bytes;
    dropped = make_room(0);
  }
  release_all(dropped);
}

void trim_cache() noexcept {
  Header* dropped = nullptr;
  {
    const std::scoped_lock lock(process_lock());
    dropped = make_room(g_cache.bound + 1);
  }
  release_all(dropped);
}

}  // namespace shufflestore
