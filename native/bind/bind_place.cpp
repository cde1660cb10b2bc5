// place() as Python sees it. Types check shapes, place() checks values.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "gil.hpp"
#include "shufflestore/place.hpp"
#include "views.hpp"

namespace shufflestore::bind {
namespace {

using namespace nb::literals;
using Rows = nb::ndarray<const std::uint64_t, nb::shape<-1, 5>, nb::c_contig, nb::device::cpu>;
using Outputs = std::vector<Output<std::uint8_t>>;
using Wrong = std::optional<std::tuple<std::uint64_t, std::uint32_t>>;

// Below, letting the GIL go costs more than it gives: among many threads, taking it back can take
// milliseconds.
bool is_worth_it(std::span<const Read> reads) {
  constexpr std::uint64_t kBytes = 16 << 10;
  constexpr std::uint64_t kBytesOfARead = 64;  // what its checks cost, in bytes copied
  std::uint64_t work = 0;
  for (const Read& read : reads) work += kBytesOfARead + std::min(read.size, kBytes);
  return work >= kBytes;
}

Wrong place_rows(const Bytes& data, std::uint64_t data_offset, const Rows& reads, const Outputs& outputs) {
  const std::span rows(reinterpret_cast<const Read*>(reads.data()), reads.shape(0));
  std::vector<std::span<std::uint8_t>> slots;
  slots.reserve(outputs.size());
  for (const Output<std::uint8_t>& output : outputs) slots.push_back(view(output));
  std::optional<GilReleased> nogil;
  if (is_worth_it(rows)) nogil.emplace();
  const std::optional<Misplaced> wrong = place(view(data), data_offset, rows, slots);
  if (!wrong.has_value()) return std::nullopt;
  return std::tuple(wrong->index, wrong->found);
}

}  // namespace

void bind_place(nb::module_& m) {
  m.def("place", &place_rows, "data"_a.noconvert(), "data_offset"_a, "reads"_a.noconvert(),
        "outputs"_a.noconvert(),
        nb::sig("def place(data: typing_extensions.Buffer, data_offset: int, "
                "reads: numpy.typing.NDArray[numpy.uint64], "
                "outputs: typing.Sequence[numpy.typing.NDArray[numpy.uint8]]) -> tuple[int, int] | None"),
        "Fill the slots of reads, five words each as storage.base.READ has them, from `data`, the file's "
        "bytes from\n"
        "`data_offset` on: checked, copied or widened. Return None, or (index, found CRC32C) of the first "
        "wrong one;\n"
        "slots before it are filled, its own holds anything. ValueError, and nothing written, for a read "
        "outside\n"
        "`data` or its output.");
}

}  // namespace shufflestore::bind
