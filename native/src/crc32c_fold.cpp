// Folding with 128- and 256-bit carry-less multiplies: four blocks in flight, then one, then the tail.
// Method: Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", Intel 2009.
#if defined(__x86_64__)
#include <immintrin.h>

#include "crc32c_kernels.hpp"
#include "crc32c_math.hpp"

#define TARGET_128 __attribute__((target("sse4.2,pclmul")))
#define TARGET_256 __attribute__((target("avx2,sse4.2,pclmul,vpclmulqdq")))

namespace shufflestore::crc32c_kernel {
namespace {

using crc32c_math::high_fold;
using crc32c_math::low_fold;

template <std::size_t Bits>
TARGET_128 inline __m128i factors() noexcept {
  constexpr std::uint64_t high = high_fold(Bits);
  constexpr std::uint64_t low = low_fold(Bits);
  return _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
}

TARGET_128 inline __m128i fold(__m128i block, __m128i factor, __m128i next) noexcept {
  const __m128i low = _mm_clmulepi64_si128(block, factor, 0x00);
  const __m128i high = _mm_clmulepi64_si128(block, factor, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

template <bool Copy>
TARGET_128 inline __m128i take128(std::uint8_t*& to, const std::uint8_t*& from) noexcept {
  __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  asm volatile("" : "+x"(block));
  if constexpr (Copy) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), block);
    to += sizeof block;
  }
  from += sizeof block;
  return block;
}

// A block is a message of 16 bytes whose start already holds the state.
TARGET_128 inline std::uint32_t reduce(__m128i block) noexcept {
  const auto low = static_cast<std::uint64_t>(_mm_cvtsi128_si64(block));
  const auto high = static_cast<std::uint64_t>(_mm_extract_epi64(block, 1));
  return static_cast<std::uint32_t>(_mm_crc32_u64(_mm_crc32_u64(0, low), high));
}

template <bool Copy>
std::uint32_t rest(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                   std::uint32_t state) noexcept {
  if constexpr (Copy) {
    return sse42_copy(to, from, size, state);
  } else {
    return sse42_hash(from, size, state);
  }
}

template <bool Copy>
TARGET_128 std::uint32_t fold128(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                                 std::uint32_t state) noexcept {
  if (size < 64) return rest<Copy>(to, from, size, state);
  __m128i a = take128<Copy>(to, from);
  __m128i b = take128<Copy>(to, from);
  __m128i c = take128<Copy>(to, from);
  __m128i d = take128<Copy>(to, from);
  a = _mm_xor_si128(a, _mm_cvtsi32_si128(static_cast<int>(state)));
  const __m128i by_512 = factors<512>();
  for (size -= 64; size >= 64; size -= 64) {
    a = fold(a, by_512, take128<Copy>(to, from));
    b = fold(b, by_512, take128<Copy>(to, from));
    c = fold(c, by_512, take128<Copy>(to, from));
    d = fold(d, by_512, take128<Copy>(to, from));
  }
  const __m128i by_128 = factors<128>();
  d = fold(fold(fold(a, by_128, b), by_128, c), by_128, d);
  for (; size >= 16; size -= 16) d = fold(d, by_128, take128<Copy>(to, from));
  return rest<Copy>(to, from, size, reduce(d));
}

template <std::size_t Bits>
TARGET_256 inline __m256i factors256() noexcept {
  constexpr auto high = static_cast<long long>(high_fold(Bits));
  constexpr auto low = static_cast<long long>(low_fold(Bits));
  return _mm256_set_epi64x(high, low, high, low);
}

TARGET_256 inline __m256i fold(__m256i block, __m256i factor, __m256i next) noexcept {
  const __m256i low = _mm256_clmulepi64_epi128(block, factor, 0x00);
  const __m256i high = _mm256_clmulepi64_epi128(block, factor, 0x11);
  return _mm256_xor_si256(_mm256_xor_si256(low, high), next);
}

template <bool Copy>
TARGET_256 inline __m256i take256(std::uint8_t*& to, const std::uint8_t*& from) noexcept {
  __m256i block = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  asm volatile("" : "+x"(block));
  if constexpr (Copy) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), block);
    to += sizeof block;
  }
  from += sizeof block;
  return block;
}

template <bool Copy>
TARGET_256 std::uint32_t fold256(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                                 std::uint32_t state) noexcept {
  if (size < 128) return fold128<Copy>(to, from, size, state);
  __m256i a = take256<Copy>(to, from);
  __m256i b = take256<Copy>(to, from);
  __m256i c = take256<Copy>(to, from);
  __m256i d = take256<Copy>(to, from);
  a = _mm256_xor_si256(a, _mm256_zextsi128_si256(_mm_cvtsi32_si128(static_cast<int>(state))));
  const __m256i by_1024 = factors256<1024>();
  for (size -= 128; size >= 128; size -= 128) {
    a = fold(a, by_1024, take256<Copy>(to, from));
    b = fold(b, by_1024, take256<Copy>(to, from));
    c = fold(c, by_1024, take256<Copy>(to, from));
    d = fold(d, by_1024, take256<Copy>(to, from));
  }
  const __m256i by_256 = factors256<256>();
  d = fold(fold(fold(a, by_256, b), by_256, c), by_256, d);
  for (; size >= 32; size -= 32) d = fold(d, by_256, take256<Copy>(to, from));
  __m128i last = fold(_mm256_castsi256_si128(d), factors<128>(), _mm256_extracti128_si256(d, 1));
  if (size >= 16) {
    last = fold(last, factors<128>(), take128<Copy>(to, from));
    size -= 16;
  }
  return rest<Copy>(to, from, size, reduce(last));
}

}  // namespace

std::uint32_t fold128_hash(const std::uint8_t* from, std::size_t size, std::uint32_t state) noexcept {
  return fold128<false>(nullptr, from, size, state);
}
std::uint32_t fold128_copy(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                           std::uint32_t state) noexcept {
  return fold128<true>(to, from, size, state);
}
std::uint32_t fold256_hash(const std::uint8_t* from, std::size_t size, std::uint32_t state) noexcept {
  return fold256<false>(nullptr, from, size, state);
}
std::uint32_t fold256_copy(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                           std::uint32_t state) noexcept {
  return fold256<true>(to, from, size, state);
}

}  // namespace shufflestore::crc32c_kernel
#endif
