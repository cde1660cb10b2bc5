#include <sys/mman.h>

#include <cstring>
#include <new>

#include "check.hpp"
#include "scene.hpp"
#include "shufflestore/buffer.hpp"
#include "shufflestore/sys.hpp"

using namespace scene;

TEST(blocks_are_aligned_and_as_large_as_asked) {
  for (std::uint64_t size = 0; size < 5'000'000; size = size * 5 / 4 + 1) {
    const Buffer buffer = Buffer::allocate(size);
    CHECK(buffer.size() == size);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64 == 0);
    std::memset(buffer.data(), 1, size);
  }
}

TEST(a_freed_block_serves_the_next_of_its_size) {
  trim_cache();
  std::uint8_t* const first = Buffer::allocate(500'000).release();
  release_block(first);
  CHECK(cached_bytes() > 500'000);
  const Buffer again = Buffer::allocate(499'000);
  CHECK(again.data() == first);
  CHECK(cached_bytes() == 0);
}

TEST(the_cache_is_bounded_and_lets_idle_sizes_go) {
  trim_cache();
  for (const std::uint64_t size : {3'000'000u, 7'000'000u}) {
    std::vector<Buffer> many;
    for (int i = 0; i < 40; ++i) many.push_back(Buffer::allocate(size));
    many.clear();
    CHECK(cached_bytes() <= kMostCached);
    CHECK(cached_bytes() > kMostCached / 2);
  }
  const Buffer larger_than_the_cache = Buffer::allocate(kMostCached * 2);
  trim_cache();
  CHECK(cached_bytes() == 0);
}

TEST(sizes_beyond_reason_are_refused) {
  CHECK(check::throws<std::bad_alloc>([] { (void)Buffer::allocate(~std::uint64_t{0}); }));
  CHECK(check::throws<std::bad_alloc>([] { (void)Buffer::allocate(std::uint64_t{1} << 47); }));
}

TEST(the_bound_of_the_cache_only_falls_and_what_is_above_it_goes) {
  trim_cache();
  for (int i = 0; i < 8; ++i) {
    std::vector<Buffer> held;
    for (int k = 0; k < 8; ++k) held.push_back(Buffer::allocate(1 << 20));
  }
  CHECK(cached_bytes() > (4 << 20));
  bound_cache(2 << 20);
  CHECK(cached_bytes() <= (2 << 20));
  bound_cache(kMostCached);
  {
    std::vector<Buffer> held;
    for (int k = 0; k < 8; ++k) held.push_back(Buffer::allocate(1 << 20));
  }
  CHECK(cached_bytes() <= (2 << 20));
}

std::size_t g_mapped = 0;
bool g_is_full = false;

TEST(a_huge_block_is_mapped_and_all_of_it_goes_back_to_the_system) {
  trim_cache();
  Sys table = real_sys();
  table.mmap = [](void* at, std::size_t size, int protection, int flags, int fd, off_t offset) -> void* {
    if (g_is_full) return MAP_FAILED;
    g_mapped += size;
    return real_sys().mmap(at, size, protection, flags, fd, offset);
  };
  table.munmap = [](void* at, std::size_t size) {
    g_mapped -= size;
    return real_sys().munmap(at, size);
  };
  replace_sys(&table);
  for (const std::uint64_t size :
       {std::uint64_t{2'000'000}, std::uint64_t{9'000'000}, std::uint64_t{kMostCached}}) {
    {
      const Buffer buffer = Buffer::allocate(size);
      std::memset(buffer.data(), 1, size);
      const std::size_t rest = g_mapped - size;
      CHECK(g_mapped > size);
      CHECK(rest <= size / 4 + 64);
      CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % (2 << 20) == 64);
    }
    trim_cache();
    CHECK(g_mapped == 0);
  }
  g_is_full = true;
  CHECK(check::throws<std::bad_alloc>([] { (void)Buffer::allocate(5'000'000); }));
  replace_sys(nullptr);
}
