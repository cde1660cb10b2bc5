#include "shufflestore/file_table.hpp"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "shufflestore/error.hpp"

namespace shufflestore {
namespace {

std::size_t default_max_open() noexcept {
  constexpr std::size_t kMaps = 4096;
  constexpr std::size_t kOthers = 64;  // descriptors left to the rest of the process
  constexpr std::size_t kLeast = 8;
  struct rlimit limit {};
  if (sys().getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kMaps;
  const auto allowed = static_cast<std::size_t>(limit.rlim_cur);
  return std::clamp(allowed > kOthers ? allowed - kOthers : 0, kLeast, kMaps);
}

Fd open_retrying(const std::string& path, bool direct) {
  int flags = O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0);
  for (;;) {
    const int fd = sys().open(path.c_str(), flags);
    if (fd >= 0) return Fd(fd);
    if (errno == EINVAL && (flags & O_DIRECT) != 0) {
      flags &= ~O_DIRECT;  // a file system without it, say in memory: the same reads, through its cache
    } else if (errno != EINTR) {
      throw IoError(errno, path, "cannot open");
    }
  }
}

bool is_out_of_room(int error) noexcept {
  return error == EMFILE || error == ENFILE || error == ENOMEM;
}

}  // namespace

FileList::~FileList() {
  for (std::size_t i = 0; i < chunks_.size(); ++i) delete[] chunks_[i].load();
}

std::uint32_t FileList::add(std::string path, std::uint64_t vouched_size) {
  const std::scoped_lock lock(adding_);
  const std::size_t number = count_.load(std::memory_order_relaxed);
  if (number >= std::numeric_limits<std::uint32_t>::max()) {
    throw std::length_error("a reader holds at most 4294967295 files");
  }
  const auto chunk = static_cast<std::size_t>(std::bit_width(number / kFirstChunk + 1)) - 1;
  if (chunks_[chunk].load(std::memory_order_relaxed) == nullptr) {
    chunks_[chunk].store(new FileEntry[kFirstChunk << chunk], std::memory_order_release);
  }
  FileEntry& entry = (*this)[number];
  entry.path = std::move(path);
  entry.vouched_size = vouched_size;
  count_.store(number + 1, std::memory_order_release);
  return static_cast<std::uint32_t>(number);
}

FileEntry& FileList::operator[](std::size_t number) const noexcept {
  // Chunk k holds [1024 * (2^k - 1), 1024 * (2^(k + 1) - 1)).
  const auto chunk = static_cast<std::size_t>(std::bit_width(number / kFirstChunk + 1)) - 1;
  const std::size_t first = kFirstChunk * ((std::size_t{1} << chunk) - 1);
  return chunks_[chunk].load(std::memory_order_acquire)[number - first];
}

FileTable::FileTable(Access access, std::size_t max_open, std::size_t workers)
    : access_(access),
      max_open_(max_open != 0 ? max_open : default_max_open()),
      workers_(workers),
      epochs_(workers),
      pins_(std::make_unique<PinSlot[]>(workers)) {}

FileTable::~FileTable() {
  close_all();
}

void FileTable::close_all() noexcept {
  const std::scoped_lock lock(mutex_);
  for (const std::uint32_t number : open_) delete files_[number].open.exchange(nullptr);
  open_.clear();
  retired_.clear();
  open_count_.store(0, std::memory_order_relaxed);
}

const OpenFile& FileTable::acquire(std::uint32_t number) {
  FileEntry& entry = files_[number];
  const std::uint32_t now = clock_.load(std::memory_order_relaxed);
  if (entry.last_used.load(std::memory_order_relaxed) != now) {
    entry.last_used.store(now, std::memory_order_relaxed);
  }
  if (const OpenFile* open = entry.open.load(); open != nullptr) return *open;

  const std::scoped_lock opening(opening_[number % opening_.size()]);
  if (const OpenFile* open = entry.open.load(); open != nullptr) return *open;
  if (open_count_.load(std::memory_order_relaxed) >= max_open_) evict(max_open_ - max_open_ / 16 - 1);
  std::unique_ptr<OpenFile> opened = open_or_make_room(entry);
  const std::scoped_lock lock(mutex_);
  open_.push_back(number);
  open_count_.store(open_.size(), std::memory_order_relaxed);
  clock_.fetch_add(1, std::memory_order_relaxed);
  entry.open.store(opened.get());
  return *opened.release();
}

std::unique_ptr<OpenFile> FileTable::open_or_make_room(const FileEntry& entry) {
  // Files that other workers are reading go as soon as those are through: wait a moment for them.
  constexpr int kAttempts = 200;
  for (int attempt = 0;; ++attempt) {
    try {
      return open_file(entry);
    } catch (const IoError& error) {
      if (!is_out_of_room(error.error()) || attempt == kAttempts) throw;
    }
    evict(open_count_.load(std::memory_order_relaxed) / 2);
    if (attempt > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

std::unique_ptr<OpenFile> FileTable::open_file(const FileEntry& entry) const {
  auto open = std::make_unique<OpenFile>();
  if (access_ == Access::kNothing) return open;
  Fd fd = open_retrying(entry.path, access_ == Access::kDirect);
  struct stat found {};
  if (sys().fstat(fd.get(), &found) != 0) throw IoError(errno, entry.path, "cannot stat");
  if (S_ISDIR(found.st_mode)) throw IoError(EISDIR, entry.path, "cannot read");
  // A ring would wait for what somebody writes into a pipe, wherever one asks it to read.
  if (!S_ISREG(found.st_mode) && !S_ISBLK(found.st_mode)) throw IoError(ESPIPE, entry.path, "cannot seek in");
  open->size = static_cast<std::uint64_t>(found.st_size);
  open->device = found.st_dev;
  open->inode = found.st_ino;
  if (access_ != Access::kMap) {
    sys().fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);  // advice; refusal changes nothing
    open->fd = std::move(fd);
    return open;
  }
  if (open->size == 0) return open;  // an empty file cannot be mapped, and every read of it is short
  void* const at = sys().mmap(nullptr, open->size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) throw IoError(errno, entry.path, "cannot map");
  open->map = Mapping(at, open->size);
  open->regions = Regions(open->size);
  sys().madvise(at, open->size, MADV_RANDOM);
  return open;
}

void FileTable::evict(std::size_t keep) {
  const std::scoped_lock lock(mutex_);
  if (open_.size() > keep) {
    // As they are now: others go on using files, and what is sorted must not change meanwhile.
    std::vector<std::pair<std::uint32_t, std::uint32_t>> moments;
    moments.reserve(open_.size());
    for (const std::uint32_t number : open_) {
      moments.emplace_back(files_[number].last_used.load(std::memory_order_relaxed), number);
    }
    const std::size_t count = open_.size() - keep;
    std::nth_element(moments.begin(), moments.begin() + static_cast<std::ptrdiff_t>(count) - 1,
                     moments.end());
    std::ranges::transform(moments, open_.begin(), [](const auto& moment) { return moment.second; });
    retired_.reserve(retired_.size() + count);
    for (std::size_t i = 0; i < count; ++i) {
      std::unique_ptr<OpenFile> file(files_[open_[i]].open.exchange(nullptr));
      retired_.push_back({.file = std::move(file), .moment = epochs_.retire()});
    }
    open_.erase(open_.begin(), open_.begin() + static_cast<std::ptrdiff_t>(count));
    open_count_.store(open_.size(), std::memory_order_relaxed);
  }
  close_retired();
}

void FileTable::close_retired() {
  const std::uint64_t oldest = epochs_.oldest();
  std::erase_if(retired_, [this, oldest](const Retired& retired) {
    return retired.moment < oldest && !is_pinned(retired.file.get());
  });
}

bool FileTable::is_pinned(const OpenFile* file) const noexcept {
  for (std::size_t i = 0; i < workers_; ++i) {
    if (pins_[i].file.load() == file) return true;
  }
  return false;
}

std::uint64_t FileTable::length_now(std::uint32_t number, const OpenFile& open) const noexcept {
  struct stat found {};
  if (sys().stat(files_[number].path.c_str(), &found) != 0) return 0;
  if (found.st_dev != open.device || found.st_ino != open.inode) return 0;
  return static_cast<std::uint64_t>(found.st_size);
}

void FileTable::release_inherited() noexcept {
  for (std::size_t number = 0; number < files_.count(); ++number) {
    delete files_[number].open.exchange(nullptr);
  }
}

}  // namespace shufflestore
