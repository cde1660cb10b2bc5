// bind_resolve.cpp: row-index arithmetic as Python sees it. Shapes are checked here, values in the library.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "gil.hpp"
#include "shufflestore/resolve.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace shufflestore;

namespace {

template <class T, std::size_t N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T>
using Vector = Array<T, 1>;
template <class T>
using Matrix = Array<T, 2>;

template <class A>
auto flat(const A& array) {
  return std::span(array.data(), array.size());
}

void demand(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

}  // namespace

void bind_resolve(nb::module_& m) {
  m.def(
      "locate",
      [](Vector<const std::uint8_t> arena, Vector<const std::int64_t> pages, Vector<const std::int64_t> slots,
         Vector<const std::int64_t> rows, Vector<const std::int64_t> geometry,
         Matrix<const std::int64_t> levels, Matrix<const std::int64_t> reads, Matrix<const std::int64_t> bits,
         Matrix<const std::int64_t> copies, Vector<const std::int64_t> nulls, Matrix<std::uint64_t> offset,
         Matrix<std::uint64_t> size, Matrix<std::uint64_t> slot, Matrix<std::uint32_t> crc,
         Matrix<std::uint8_t> shift, Matrix<std::int64_t> counts, Matrix<std::uint8_t> bit_values,
         Matrix<std::uint8_t> fixed) {
        const auto n = offset.shape(0), k = reads.shape(0);
        demand(pages.size() == slots.size() && pages.size() == rows.size(),
               "locate: pages, slots, rows differ");
        demand(geometry.size() == 4 && levels.shape(1) == 4 && reads.shape(1) == 8 && bits.shape(1) == 2 &&
                   copies.shape(1) == 3,
               "locate: a table has the wrong width");
        const auto fits = [&](const auto& array, std::size_t width) {
          return array.shape(0) == n && array.shape(1) == width;
        };
        demand(fits(offset, k) && fits(size, k) && fits(slot, k) && fits(crc, k) && fits(shift, k) &&
                   fits(counts, levels.shape(0)) && fits(bit_values, bits.shape(0)) &&
                   fits(fixed, static_cast<std::size_t>(geometry(3))),
               "locate: an output has the wrong shape");
        const shufflestore::bind::GilReleased nogil;  // the arguments keep every array alive until the return
        return locate(flat(arena), flat(pages), flat(slots), flat(rows),
                      {flat(geometry), flat(levels), flat(reads), flat(bits), flat(copies), flat(nulls)},
                      {offset.data(), size.data(), slot.data(), crc.data(), shift.data(), counts.data(),
                       bit_values.data(), fixed.data(), n});
      },
      "arena"_a.noconvert(), "pages"_a.noconvert(), "slots"_a.noconvert(), "rows"_a.noconvert(),
      "geometry"_a.noconvert(), "levels"_a.noconvert(), "reads"_a.noconvert(), "bits"_a.noconvert(),
      "copies"_a.noconvert(), "nulls"_a.noconvert(), "offset"_a.noconvert(), "size"_a.noconvert(),
      "slot"_a.noconvert(), "crc"_a.noconvert(), "shift"_a.noconvert(), "counts"_a.noconvert(),
      "bit_values"_a.noconvert(), "fixed"_a.noconvert(),
      "Fill in ranges of records from index pages; the first record whose page contradicts itself, or -1.");
  m.def(
      "lay_out",
      [](Matrix<const std::uint64_t> offset, Matrix<const std::uint64_t> size,
         Matrix<const std::uint64_t> slot, Matrix<const std::uint32_t> crc, Vector<const std::uint32_t> files,
         Vector<const std::int64_t> batch_ends, Matrix<const std::int64_t> lay, bool verify,
         Matrix<std::uint64_t> reads, Vector<std::uint64_t> ends, Matrix<std::uint64_t> output_sizes,
         Array<std::int64_t, 3> regions) {
        const auto n = offset.shape(0), k = lay.shape(0), b = batch_ends.size();
        const auto fits = [&](const auto& array) { return array.shape(0) == n && array.shape(1) == k; };
        demand(fits(offset) && fits(size) && fits(slot) && fits(crc) && files.size() == n,
               "lay_out: inputs differ");
        demand(lay.shape(1) == 3 && reads.shape(1) == 5 && ends.size() == b && output_sizes.shape(0) == b &&
                   regions.shape(0) == b && regions.shape(1) == k && regions.shape(2) == 2,
               "lay_out: an output has the wrong shape");
        const shufflestore::bind::GilReleased nogil;
        lay_out({flat(offset), flat(size), flat(slot), flat(crc), flat(files), flat(batch_ends), flat(lay),
                 verify, flat(reads), flat(ends), flat(output_sizes), flat(regions)});
      },
      "offset"_a.noconvert(), "size"_a.noconvert(), "slot"_a.noconvert(), "crc"_a.noconvert(),
      "files"_a.noconvert(), "batch_ends"_a.noconvert(), "lay"_a.noconvert(), "verify"_a,
      "reads"_a.noconvert(), "ends"_a.noconvert(), "output_sizes"_a.noconvert(), "regions"_a.noconvert(),
      "Give every range its slot in its batch's outputs.");
}
