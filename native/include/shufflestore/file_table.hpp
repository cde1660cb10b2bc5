// The files of a reader: registered by the thousand, opened on first use, the idle ones closed again.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "shufflestore/epochs.hpp"
#include "shufflestore/fd.hpp"
#include "shufflestore/regions.hpp"

namespace shufflestore {

// What an engine needs of an open file.
enum class Access : std::uint8_t { kNothing, kMap, kDescriptor, kDirect };

struct OpenFile {
  Fd fd;        // kDescriptor, kDirect
  Mapping map;  // kMap; keeps no descriptor
  mutable Regions regions;
  std::uint64_t size = 0;
  dev_t device = 0;
  ino_t inode = 0;
};

struct FileEntry {
  std::string path;
  std::uint64_t vouched_size = 0;
  std::atomic<OpenFile*> open{nullptr};
  std::atomic<std::uint32_t> last_used{0};
};

// Files by number. Entries never move and are read without a lock, also in a forked child.
class FileList {
 public:
  FileList() = default;
  ~FileList();
  FileList(const FileList&) = delete;
  FileList& operator=(const FileList&) = delete;

  std::uint32_t add(std::string path, std::uint64_t vouched_size);
  std::size_t count() const noexcept { return count_.load(std::memory_order_acquire); }
  FileEntry& operator[](std::size_t number) const noexcept;

 private:
  static constexpr std::size_t kFirstChunk = 1024;  // each further chunk is twice as long

  std::mutex adding_;
  std::array<std::atomic<FileEntry*>, 23> chunks_{};
  std::atomic<std::size_t> count_{0};
};

class FileTable {
 public:
  // Keeps at most about `max_open` files open; 0 chooses the smaller of 4,096 and the descriptor limit - 64.
  FileTable(Access access, std::size_t max_open, std::size_t workers);
  ~FileTable();
  FileTable(const FileTable&) = delete;
  FileTable& operator=(const FileTable&) = delete;

  // Safe with concurrent use. Throws std::length_error at 2^32 files.
  std::uint32_t add(std::string path, std::uint64_t vouched_size) {
    return files_.add(std::move(path), vouched_size);
  }
  const FileList& files() const noexcept { return files_; }
  std::size_t open_count() const noexcept { return open_count_.load(std::memory_order_relaxed); }
  std::size_t max_open() const noexcept { return max_open_; }

  // What keeps a file open while it is used. Maps are used for microseconds, by the dozen: a Visit keeps
  // every map open that was retired after it began. A read of a descriptor may hang for a minute on a
  // network: a Pin keeps one file open and lets all others go.
  class Visit {
   public:
    Visit(FileTable& table, std::size_t worker) noexcept : table_(table), worker_(worker) {
      table_.epochs_.enter(worker_);
    }
    ~Visit() { table_.epochs_.leave(worker_); }
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;
    // Throws IoError, std::bad_alloc.
    const OpenFile& open(std::uint32_t number) { return table_.acquire(number); }

   private:
    FileTable& table_;
    std::size_t worker_;
  };
  class Pin {
   public:
    // Throws IoError, std::bad_alloc.
    Pin(FileTable& table, std::size_t worker, std::uint32_t number) : slot_(table.pins_[worker].file) {
      // An eviction either sees the pin or is seen by the second look.
      do {
        file_ = &table.acquire(number);
        slot_.store(file_);
      } while (table.files_[number].open.load() != file_);
    }
    ~Pin() { slot_.store(nullptr, std::memory_order_release); }
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    const OpenFile& file() const noexcept { return *file_; }

   private:
    std::atomic<const OpenFile*>& slot_;
    const OpenFile* file_ = nullptr;
  };

  // The length that the file has now, asked by path; 0 where the path is another file than the open one.
  std::uint64_t length_now(std::uint32_t number, const OpenFile& open) const noexcept;

  // Closes every file; no worker may be in the table.
  void close_all() noexcept;

  // In a forked child: closes what was inherited. No other thread may be in the table, and none is.
  void release_inherited() noexcept;

 private:
  struct Retired {
    std::unique_ptr<OpenFile> file;
    std::uint64_t moment;
  };
  struct alignas(64) PinSlot {
    std::atomic<const OpenFile*> file{nullptr};
  };

  const OpenFile& acquire(std::uint32_t number);
  std::unique_ptr<OpenFile> open_file(const FileEntry& entry) const;
  std::unique_ptr<OpenFile> open_or_make_room(const FileEntry& entry);
  void evict(std::size_t keep);
  void close_retired();
  bool is_pinned(const OpenFile* file) const noexcept;

  Access access_;
  std::size_t max_open_;
  std::size_t workers_;
  Epochs epochs_;
  std::unique_ptr<PinSlot[]> pins_;  // a worker's each
  FileList files_;
  std::atomic<std::uint32_t> clock_{0};
  std::atomic<std::size_t> open_count_{0};
  std::array<std::mutex, 16> opening_;  // so that many threads do not open one file many times
  std::mutex mutex_;                    // guards the two below
  std::vector<std::uint32_t> open_;
  std::vector<Retired> retired_;
};

}  // namespace shufflestore
