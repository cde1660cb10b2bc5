// The kernels of crc32c.cpp, one file each. Every one comes twice: hashing, and copying while hashing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace shufflestore::crc32c_kernel {

#define SHUFFLESTORE_CRC32C_KERNEL(name)                                                               \
  std::uint32_t name##_hash(const std::uint8_t* from, std::size_t size, std::uint32_t state) noexcept; \
  std::uint32_t name##_copy(std::uint8_t* to, const std::uint8_t* from, std::size_t size,              \
                            std::uint32_t state) noexcept

SHUFFLESTORE_CRC32C_KERNEL(portable);  // eight tables, eight bytes a step
SHUFFLESTORE_CRC32C_KERNEL(sse42);     // crc32 instruction, three streams at once
SHUFFLESTORE_CRC32C_KERNEL(fold128);   // carry-less multiply, 64 bytes a step
SHUFFLESTORE_CRC32C_KERNEL(fold256);   // the same, 128 bytes a step
SHUFFLESTORE_CRC32C_KERNEL(fold512);   // the same, 256 bytes a step

#undef SHUFFLESTORE_CRC32C_KERNEL

// Loads a word once and, where `Copy`, stores what was loaded. No alignment is needed.
template <bool Copy, typename Word>
inline Word take(std::uint8_t*& to, const std::uint8_t*& from) noexcept {
  Word word;
  std::memcpy(&word, from, sizeof word);
  // The value must not be loaded a second time: the file under a map may be changing.
  asm volatile("" : "+r"(word));
  if constexpr (Copy) {
    std::memcpy(to, &word, sizeof word);
    to += sizeof word;
  }
  from += sizeof word;
  return word;
}

}  // namespace shufflestore::crc32c_kernel
