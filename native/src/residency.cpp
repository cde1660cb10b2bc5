#include "shufflestore/residency.hpp"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "shufflestore/error.hpp"
#include "shufflestore/fd.hpp"
#include "shufflestore/sys.hpp"

namespace shufflestore {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kStretch = 256 << 20;  // mapped and asked about at a time

// For systems without cachestat (before Linux 6.5, or forbidden): through a map, stretch by stretch.
std::uint64_t by_mincore(const Fd& fd, std::uint64_t size, const std::string& path) {
  std::vector<unsigned char> pages(std::min(size, kStretch) / kPage + 1);
  std::uint64_t found = 0;
  for (std::uint64_t at = 0; at < size; at += kStretch) {
    const std::size_t length = std::min(size - at, kStretch);
    void* const start = sys().mmap(nullptr, length, PROT_READ, MAP_SHARED, fd.get(), static_cast<off_t>(at));
    if (start == MAP_FAILED) throw IoError(errno, path, "cannot map");
    const Mapping map(start, length);
    if (sys().mincore(start, length, pages.data()) != 0)
      throw IoError(errno, path, "cannot look at the pages of");
    const auto last = pages.begin() + static_cast<std::ptrdiff_t>((length + kPage - 1) / kPage);
    found += static_cast<std::uint64_t>(
        std::count_if(pages.begin(), last, [](unsigned char page) { return (page & 1) != 0; }));
  }
  return found * kPage;
}

}  // namespace

std::uint64_t resident_bytes(const std::string& path) {
  const Fd fd(sys().open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) throw IoError(errno, path, "cannot open");
  struct stat found {};
  if (sys().fstat(fd.get(), &found) != 0) throw IoError(errno, path, "cannot stat");
  const auto size = static_cast<std::uint64_t>(found.st_size);
  std::uint64_t pages = 0;
  if (sys().cachestat(fd.get(), size, &pages) == 0) return std::min(pages * kPage, size);
  return std::min(by_mincore(fd, size, path), size);
}

}  // namespace shufflestore
