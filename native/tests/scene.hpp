// What the tests share: a file of known bytes, batches over it, and a system that can be made to fail.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "shufflestore/crc32c.hpp"
#include "shufflestore/reader.hpp"
#include "shufflestore/sys.hpp"

namespace scene {

using namespace shufflestore;
using Bytes = std::vector<std::uint8_t>;

inline Bytes noise(std::size_t size, std::uint64_t seed = 1) {
  Bytes bytes(size);
  for (std::uint8_t& byte : bytes) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<std::uint8_t>(seed >> 56);
  }
  return bytes;
}

// A file in the temporary folder, removed at the end.
class TempFile {
 public:
  explicit TempFile(const Bytes& bytes) {
    char path[] = "/tmp/shufflestore-test-XXXXXX";
    ::close(::mkstemp(path));
    path_ = path;
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  ~TempFile() { ::unlink(path_.c_str()); }
  TempFile(const TempFile&) = delete;
  const std::string& path() const { return path_; }
  void truncate(std::size_t size) const {
    if (::truncate(path_.c_str(), static_cast<off_t>(size)) != 0) std::abort();
  }

 private:
  std::string path_;
};

// A system of one's own for a scope; starts as the real one.
class FakeSys {
 public:
  FakeSys() : table(real_sys()) { replace_sys(&table); }
  ~FakeSys() { replace_sys(nullptr); }
  FakeSys(const FakeSys&) = delete;
  Sys table;
};

inline Read copy_read(std::uint64_t offset, std::uint64_t slot, std::uint64_t size, std::uint32_t file = 0) {
  Read read{};
  read.offset = offset;
  read.slot = slot;
  read.size = size;
  read.file = file;
  return read;
}

inline Read checked(Read read, const Bytes& bytes) {
  read.crc = crc32c(bytes.data() + read.offset, read.size);
  read.flags = kHasCrc;
  return read;
}

// One batch with one output.
inline Reader::Batch submit(Reader& reader, const std::vector<Read>& reads, std::uint64_t output_size) {
  const std::uint64_t end = reads.size();
  return reader.submit(reads, std::span(&end, 1), std::span(&output_size, 1), 1)[0];
}

inline bool finish(const Reader::Batch& batch) {
  return batch->wait(std::chrono::seconds(60));
}

inline const char* const kEngines[] = {"mmap", "pread", "io_uring", "io_uring_direct"};

}  // namespace scene
