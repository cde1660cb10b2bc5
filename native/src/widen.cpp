#include "shufflestore/widen.hpp"

#include <array>
#include <tuple>
#include <type_traits>

#include "shufflestore/cpu.hpp"
#include "shufflestore/read.hpp"

namespace shufflestore {
namespace {

using Narrow =
    std::tuple<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t>;
using Wide =
    std::tuple<std::uint16_t, std::int16_t, std::uint32_t, std::int32_t, std::uint64_t, std::int64_t>;

// Slots need no alignment, and the compiler still vectorises.
template <typename T>
struct Unaligned {
  typedef T type __attribute__((aligned(1), may_alias));
};

template <typename Source, typename Target>
[[gnu::always_inline]] inline void loop(std::uint8_t* to, const std::uint8_t* from,
                                        std::size_t count) noexcept {
  using Out = typename Unaligned<Target>::type;
  using In = const typename Unaligned<Source>::type;
  Out* __restrict__ out = reinterpret_cast<Out*>(to);
  In* __restrict__ in = reinterpret_cast<In*>(from);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<Target>(in[i]);
}

template <typename Source, typename Target>
void widen_baseline(std::uint8_t* to, const std::uint8_t* from, std::size_t count) noexcept {
  loop<Source, Target>(to, from, count);
}

#if defined(__x86_64__)
template <typename Source, typename Target>
__attribute__((target("avx2"))) void widen_avx2(std::uint8_t* to, const std::uint8_t* from,
                                                std::size_t count) noexcept {
  loop<Source, Target>(to, from, count);
}

#if defined(__clang__)
#define TARGET_512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#else
#define TARGET_512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")))
#endif
template <typename Source, typename Target>
TARGET_512 void widen_avx512(std::uint8_t* to, const std::uint8_t* from, std::size_t count) noexcept {
  loop<Source, Target>(to, from, count);
}
#endif

template <typename Source, typename Target>
Widening make() noexcept {
  constexpr bool grows = sizeof(Target) > sizeof(Source);
  if constexpr (grows && (std::is_unsigned_v<Source> || std::is_signed_v<Target>)) {
    Widening made{.source = sizeof(Source), .target = sizeof(Target), .run = widen_baseline<Source, Target>};
#if defined(__x86_64__)
    if (cpu().avx2) made.run = widen_avx2<Source, Target>;
    if (cpu().avx512) made.run = widen_avx512<Source, Target>;
#endif
    return made;
  } else {
    return {};
  }
}

using Table = std::array<Widening, 256>;

template <std::size_t Source, std::size_t... Target>
void fill_row(Table& table, std::index_sequence<Target...>) noexcept {
  ((table[kFirstWidening + 8 * Source + Target] =
        make<std::tuple_element_t<Source, Narrow>, std::tuple_element_t<Target, Wide>>()),
   ...);
}

template <std::size_t... Source>
Table make_table(std::index_sequence<Source...>) noexcept {
  Table table{};
  (fill_row<Source>(table, std::make_index_sequence<std::tuple_size_v<Wide>>()), ...);
  return table;
}

}  // namespace

const Widening& widening(std::uint8_t op) noexcept {
  static const Table table = make_table(std::make_index_sequence<std::tuple_size_v<Narrow>>());
  return table[op];
}

}  // namespace shufflestore
