// The yardsticks of the benchmarks as Python sees them.
#include "gil.hpp"
#include "shufflestore/limits.hpp"
#include "views.hpp"

namespace shufflestore::bind {

using namespace nb::literals;

void bind_limits(nb::module_& m) {
  m.def(
      "gather_limit",
      [](Bytes data, Words offsets, Words sizes, Output<std::uint8_t> out) {
        const GilReleased nogil;
        gather_limit(view(data), view(offsets), view(sizes), view(out));
      },
      "data"_a.noconvert(), "offsets"_a.noconvert(), "sizes"_a.noconvert(), "out"_a.noconvert(),
      "Copy each span into `out`, one after another: the plain C loop, for benchmarks.");
  m.def(
      "widen_limit",
      [](Bytes data, Words offsets, Words sizes, Output<std::int64_t> out) {
        const GilReleased nogil;
        widen_limit(view(data), view(offsets), view(sizes), view(out));
      },
      "data"_a.noconvert(), "offsets"_a.noconvert(), "sizes"_a.noconvert(), "out"_a.noconvert(),
      "Copy and widen spans of uint16 into `out`: the plain C loop, for benchmarks.");
}

}  // namespace shufflestore::bind
