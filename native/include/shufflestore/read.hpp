// The descriptor of one read: five 64-bit words, the READ of shufflestore/storage/base.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace shufflestore {

struct Read {
  std::uint64_t offset;  // first byte in the file
  std::uint64_t slot;    // first byte in the output
  std::uint64_t size;    // bytes in the file (kZero: bytes in the output)
  std::uint32_t file;    // what add() returned
  std::uint32_t crc;     // expected CRC32C of the file's bytes, where flags has kHasCrc
  std::uint16_t output;  // which of the batch's outputs
  std::uint8_t op;       // kCopy, kZero or the code of a widening
  std::uint8_t flags;
  std::uint32_t note;  // the caller's own; not looked at

  bool has_crc() const noexcept;
};
static_assert(sizeof(Read) == 40);

inline constexpr std::uint8_t kCopy = 0;
inline constexpr std::uint8_t kZero = 1;
inline constexpr std::uint8_t kFirstWidening = 16;
inline constexpr std::uint8_t kHasCrc = 1;
inline constexpr std::uint64_t kUnknownSize = ~std::uint64_t{0};

inline bool Read::has_crc() const noexcept {
  return (flags & kHasCrc) != 0;
}

// Why a read failed.
enum class FailureKind : std::uint8_t { kErrno, kShort, kChecksum, kMemory, kClosed };
std::string_view name(FailureKind kind) noexcept;

struct Failure {
  std::uint64_t index = 0;  // of the read within its batch
  FailureKind kind = FailureKind::kClosed;
  int error = 0;               // errno, where that is the kind
  std::uint64_t expected = 0;  // CRC, or bytes wanted
  std::uint64_t found = 0;     // CRC, or bytes that were there
};

}  // namespace shufflestore
