// CRC32C (Castagnoli), the checksum of every span. Values chain: crc32c(b, crc32c(a)) is crc32c(ab).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace shufflestore {

// CRC32C of `size` bytes, carrying on from `seed` (0 to begin).
std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t seed = 0) noexcept;

// Copies and hashes in one pass: each source byte is loaded once, so what is hashed is what was copied,
// even where another process is writing to the mapped file. Holds no object with a destructor, so a
// guarded copy may jump out of it.
std::uint32_t copy_crc32c(void* to, const void* from, std::size_t size, std::uint32_t seed = 0) noexcept;

// One way to compute it. `state` is the inverted CRC, as the instructions want it.
struct Crc32cKernel {
  std::string_view name;
  bool (*available)() noexcept;
  std::uint32_t (*hash)(const std::uint8_t* from, std::size_t size, std::uint32_t state) noexcept;
  std::uint32_t (*copy)(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                        std::uint32_t state) noexcept;
};

// All kernels that were compiled, fastest first.
std::span<const Crc32cKernel> crc32c_kernels() noexcept;

// The one in use: the fastest that runs here, or the one that SHUFFLESTORE_CRC32C names. All give the same
// checksums, so naming one is for measuring what processors without wide folding pay; a name that cannot run
// here is not followed.
const Crc32cKernel& crc32c_kernel_in_use() noexcept;

}  // namespace shufflestore
