// Choice of the kernel, and the portable one.
#include "shufflestore/crc32c.hpp"

#include <array>
#include <bit>
#include <cstdlib>

#include "crc32c_kernels.hpp"
#include "crc32c_math.hpp"
#include "shufflestore/cpu.hpp"

namespace shufflestore {

static_assert(std::endian::native == std::endian::little, "descriptors, data and kernels are little endian");

namespace crc32c_kernel {
namespace {

constexpr crc32c_math::ByteTables kTables = crc32c_math::byte_tables();

template <bool Copy>
std::uint32_t portable(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                       std::uint32_t state) noexcept {
  for (; size >= 8; size -= 8) {
    const std::uint64_t word = take<Copy, std::uint64_t>(to, from) ^ state;
    state = 0;
    for (std::size_t k = 0; k < 8; ++k) state ^= kTables[7 - k][(word >> (8 * k)) & 0xFF];
  }
  for (; size > 0; --size) {
    state = (state >> 8) ^ kTables[0][(state ^ take<Copy, std::uint8_t>(to, from)) & 0xFF];
  }
  return state;
}

}  // namespace

std::uint32_t portable_hash(const std::uint8_t* from, std::size_t size, std::uint32_t state) noexcept {
  return portable<false>(nullptr, from, size, state);
}
std::uint32_t portable_copy(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                            std::uint32_t state) noexcept {
  return portable<true>(to, from, size, state);
}

}  // namespace crc32c_kernel

namespace {

constexpr std::array kKernels = {
#if defined(__x86_64__)
    Crc32cKernel{"fold512", []() noexcept { return cpu().vpclmul512; }, crc32c_kernel::fold512_hash,
                 crc32c_kernel::fold512_copy},
    Crc32cKernel{"fold256", []() noexcept { return cpu().vpclmul256; }, crc32c_kernel::fold256_hash,
                 crc32c_kernel::fold256_copy},
    // Three streams of the crc32 instruction keep up with 128-bit folding on Intel and pass it on AMD.
    Crc32cKernel{"sse42", []() noexcept { return cpu().sse42; }, crc32c_kernel::sse42_hash,
                 crc32c_kernel::sse42_copy},
    Crc32cKernel{"fold128", []() noexcept { return cpu().pclmul; }, crc32c_kernel::fold128_hash,
                 crc32c_kernel::fold128_copy},
#endif
    Crc32cKernel{"portable", []() noexcept { return true; }, crc32c_kernel::portable_hash,
                 crc32c_kernel::portable_copy},
};

}  // namespace

const Crc32cKernel& crc32c_kernel_in_use() noexcept {
  static const Crc32cKernel& kernel = []() -> const Crc32cKernel& {
    const char* const wanted = std::getenv("SHUFFLESTORE_CRC32C");
    for (const Crc32cKernel& candidate : kKernels) {
      if (wanted != nullptr && candidate.name == wanted && candidate.available()) return candidate;
    }
    for (const Crc32cKernel& candidate : kKernels) {
      if (candidate.available()) return candidate;
    }
    return kKernels.back();
  }();
  return kernel;
}

std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t seed) noexcept {
  return ~crc32c_kernel_in_use().hash(static_cast<const std::uint8_t*>(data), size, ~seed);
}

std::uint32_t copy_crc32c(void* to, const void* from, std::size_t size, std::uint32_t seed) noexcept {
  return ~crc32c_kernel_in_use().copy(static_cast<std::uint8_t*>(to), static_cast<const std::uint8_t*>(from),
                                      size, ~seed);
}

std::span<const Crc32cKernel> crc32c_kernels() noexcept {
  return kKernels;
}

}  // namespace shufflestore
