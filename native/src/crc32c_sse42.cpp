// The crc32 instruction takes three cycles and a new one can start each cycle: three streams at once.
#if defined(__x86_64__)
#include <nmmintrin.h>

#include "crc32c_kernels.hpp"
#include "crc32c_math.hpp"

namespace shufflestore::crc32c_kernel {
namespace {

constexpr std::size_t kLong = 512;  // bytes of one of the three streams
constexpr std::size_t kShort = 64;
constexpr crc32c_math::ShiftTables kShiftLong = crc32c_math::shift_tables(kLong);
constexpr crc32c_math::ShiftTables kShiftShort = crc32c_math::shift_tables(kShort);

inline std::uint64_t shift(const crc32c_math::ShiftTables& tables, std::uint64_t state) noexcept {
  return tables[0][state & 0xFF] ^ tables[1][(state >> 8) & 0xFF] ^ tables[2][(state >> 16) & 0xFF] ^
         tables[3][state >> 24];
}

template <bool Copy, std::size_t Length>
__attribute__((target("sse4.2"))) std::uint64_t three_streams(
    std::uint8_t* to, const std::uint8_t* from, std::uint64_t a,
    const crc32c_math::ShiftTables& tables) noexcept {
  const std::uint8_t* from_b = from + Length;
  const std::uint8_t* from_c = from_b + Length;
  std::uint8_t* to_b = Copy ? to + Length : nullptr;
  std::uint8_t* to_c = Copy ? to_b + Length : nullptr;
  std::uint64_t b = 0;
  std::uint64_t c = 0;
  for (std::size_t done = 0; done < Length; done += 8) {
    a = _mm_crc32_u64(a, take<Copy, std::uint64_t>(to, from));
    b = _mm_crc32_u64(b, take<Copy, std::uint64_t>(to_b, from_b));
    c = _mm_crc32_u64(c, take<Copy, std::uint64_t>(to_c, from_c));
  }
  return shift(tables, shift(tables, a) ^ b) ^ c;
}

template <bool Copy>
__attribute__((target("sse4.2"))) std::uint32_t sse42(std::uint8_t* to, const std::uint8_t* from,
                                                      std::size_t size, std::uint32_t state) noexcept {
  std::uint64_t crc = state;
  for (; size >= 3 * kLong; size -= 3 * kLong, from += 3 * kLong, to += Copy ? 3 * kLong : 0) {
    crc = three_streams<Copy, kLong>(to, from, crc, kShiftLong);
  }
  for (; size >= 3 * kShort; size -= 3 * kShort, from += 3 * kShort, to += Copy ? 3 * kShort : 0) {
    crc = three_streams<Copy, kShort>(to, from, crc, kShiftShort);
  }
  for (; size >= 8; size -= 8) crc = _mm_crc32_u64(crc, take<Copy, std::uint64_t>(to, from));
  auto narrow = static_cast<std::uint32_t>(crc);
  if (size & 4) narrow = _mm_crc32_u32(narrow, take<Copy, std::uint32_t>(to, from));
  if (size & 2) narrow = _mm_crc32_u16(narrow, take<Copy, std::uint16_t>(to, from));
  if (size & 1) narrow = _mm_crc32_u8(narrow, take<Copy, std::uint8_t>(to, from));
  return narrow;
}

}  // namespace

std::uint32_t sse42_hash(const std::uint8_t* from, std::size_t size, std::uint32_t state) noexcept {
  return sse42<false>(nullptr, from, size, state);
}
std::uint32_t sse42_copy(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                         std::uint32_t state) noexcept {
  return sse42<true>(to, from, size, state);
}

}  // namespace shufflestore::crc32c_kernel
#endif
