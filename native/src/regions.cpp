#include "shufflestore/regions.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "shufflestore/sys.hpp"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace shufflestore {

namespace {
constexpr std::size_t kPage = 4096;  // a larger page size makes mincore fail, and then nothing is done here
}

Regions::Regions(std::size_t map_size)
    : states_(std::make_unique<std::atomic<std::uint8_t>[]>((map_size + kRegion - 1) / kRegion)) {}

void Regions::look(const std::uint8_t* base, std::size_t map_size, std::uint64_t region) noexcept {
  auto& state = states_[region];
  const auto left = state.load(std::memory_order_relaxed);
  if (left > 1) {
    state.store(static_cast<std::uint8_t>(left - 1), std::memory_order_relaxed);  // a lost count does no harm
    return;
  }
  state.store(kPatience, std::memory_order_relaxed);  // others need not look meanwhile
  const std::size_t start = region * kRegion;
  const std::size_t size = std::min(kRegion, map_size - start);
  const std::size_t pages = (size + kPage - 1) / kPage;
  std::array<unsigned char, kRegion / kPage> resident;
  void* const at = const_cast<std::uint8_t*>(base + start);
  if (sys().mincore(at, size, resident.data()) != 0) return;
  const auto here = std::count_if(resident.begin(), resident.begin() + static_cast<std::ptrdiff_t>(pages),
                                  [](unsigned char page) { return (page & 1) != 0; });
  // A few missing pages are fetched on the way: the kernel drops some of any large file now and then.
  if (static_cast<std::size_t>(here) < pages - pages / 16) {
    // Cold: this engine is for data that memory can hold, so let the disk bring the region while the copy
    // waits for its own page. Once only: where memory cannot hold it after all, that would read everything
    // again and again.
    if (left == 0) sys().madvise(at, size, MADV_WILLNEED);
    return;
  }
  // EINVAL before Linux 5.14, EFAULT where the file was cut short meanwhile: the copy finds out.
  if (sys().madvise(at, size, MADV_POPULATE_READ) == 0 || errno == EINVAL)
    state.store(kMapped, std::memory_order_relaxed);
}

}  // namespace shufflestore
