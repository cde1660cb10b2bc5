// Folding with 512-bit carry-less multiplies. Records are short, so the tail is folded too, not hashed
// byte by byte: the last block is shifted to make room for it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "crc32c_kernels.hpp"
#include "crc32c_math.hpp"

#define TARGET_512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx2,sse4.2,pclmul,vpclmulqdq")))

namespace shufflestore::crc32c_kernel {
namespace {

using crc32c_math::high_fold;
using crc32c_math::low_fold;

template <std::size_t Bits>
TARGET_512 inline __m512i factors() noexcept {
  constexpr auto high = static_cast<long long>(high_fold(Bits));
  constexpr auto low = static_cast<long long>(low_fold(Bits));
  return _mm512_set_epi64(high, low, high, low, high, low, high, low);
}

TARGET_512 inline __m512i fold(__m512i block, __m512i factor, __m512i next) noexcept {
  const __m512i low = _mm512_clmulepi64_epi128(block, factor, 0x00);
  const __m512i high = _mm512_clmulepi64_epi128(block, factor, 0x11);
  return _mm512_ternarylogic_epi64(low, high, next, 0x96);  // exclusive or of three
}

template <bool Copy>
TARGET_512 inline __m512i take512(std::uint8_t*& to, const std::uint8_t*& from) noexcept {
  __m512i block = _mm512_loadu_si512(from);
  asm volatile("" : "+v"(block));
  if constexpr (Copy) {
    _mm512_storeu_si512(to, block);
    to += sizeof block;
  }
  from += sizeof block;
  return block;
}

// The 64 bytes of `block` and the `size` < 64 bytes at `from`, as one block of the same CRC.
template <bool Copy>
TARGET_512 inline __m512i take_tail(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                                    __m512i block) noexcept {
  const __mmask64 present = (std::uint64_t{1} << size) - 1;
  __m512i tail = _mm512_maskz_loadu_epi8(present, from);
  asm volatile("" : "+v"(tail));
  if constexpr (Copy) _mm512_mask_storeu_epi8(to, present, tail);
  alignas(64) static constexpr auto kCount = [] {
    struct {
      std::uint8_t byte[64];
    } count{};
    for (std::uint8_t i = 0; i < 64; ++i) count.byte[i] = i;
    return count;
  }();
  const __m512i moved =
      _mm512_add_epi8(_mm512_load_si512(&kCount), _mm512_set1_epi8(static_cast<char>(size)));
  // Bytes [size, 64 + size) of block and tail together, and the first `size` bytes, moved to the end.
  const __m512i back = _mm512_permutex2var_epi8(block, moved, tail);
  const __m512i front = _mm512_maskz_permutexvar_epi8(~(~std::uint64_t{0} >> size), moved, block);
  return fold(front, factors<512>(), back);
}

TARGET_512 inline std::uint32_t reduce(__m512i block) noexcept {
  constexpr auto low = [](std::size_t bits) { return static_cast<long long>(low_fold(bits)); };
  constexpr auto high = [](std::size_t bits) { return static_cast<long long>(high_fold(bits)); };
  constexpr long long k[] = {low(384), high(384), low(256), high(256), low(128), high(128)};
  const __m512i factor = _mm512_set_epi64(0, 0, k[5], k[4], k[3], k[2], k[1], k[0]);
  const __m512i last = _mm512_maskz_mov_epi64(0xC0, block);
  const __m512i lanes = fold(block, factor, last);
  const __m256i two = _mm256_xor_si256(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
  const __m128i one = _mm_xor_si128(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
  const auto first = static_cast<std::uint64_t>(_mm_cvtsi128_si64(one));
  const auto second = static_cast<std::uint64_t>(_mm_extract_epi64(one, 1));
  return static_cast<std::uint32_t>(_mm_crc32_u64(_mm_crc32_u64(0, first), second));
}

template <bool Copy>
TARGET_512 std::uint32_t fold512(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                                 std::uint32_t state) noexcept {
  if (size < 64) {
    if constexpr (Copy) return sse42_copy(to, from, size, state);
    return sse42_hash(from, size, state);
  }
  const __m512i begin = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state)));
  __m512i a = _mm512_xor_si512(take512<Copy>(to, from), begin);
  const __m512i by_512 = factors<512>();
  if (size >= 256) {
    __m512i b = take512<Copy>(to, from);
    __m512i c = take512<Copy>(to, from);
    __m512i d = take512<Copy>(to, from);
    const __m512i by_2048 = factors<2048>();
    for (size -= 256; size >= 256; size -= 256) {
      a = fold(a, by_2048, take512<Copy>(to, from));
      b = fold(b, by_2048, take512<Copy>(to, from));
      c = fold(c, by_2048, take512<Copy>(to, from));
      d = fold(d, by_2048, take512<Copy>(to, from));
    }
    a = fold(a, factors<1536>(), fold(b, factors<1024>(), fold(c, by_512, d)));
  } else {
    size -= 64;
  }
  for (; size >= 64; size -= 64) a = fold(a, by_512, take512<Copy>(to, from));
  if (size > 0) a = take_tail<Copy>(to, from, size, a);
  return reduce(a);
}

}  // namespace

std::uint32_t fold512_hash(const std::uint8_t* from, std::size_t size, std::uint32_t state) noexcept {
  return fold512<false>(nullptr, from, size, state);
}
std::uint32_t fold512_copy(std::uint8_t* to, const std::uint8_t* from, std::size_t size,
                           std::uint32_t state) noexcept {
  return fold512<true>(to, from, size, state);
}

}  // namespace shufflestore::crc32c_kernel
#endif
