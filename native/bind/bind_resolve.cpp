// bind_resolve.cpp: row-index arithmetic as Python sees it. Shapes are checked here, values in the library.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <utility>
#include <vector>

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
using Ints = Vector<const std::int64_t>;
using Rows = Matrix<const std::int64_t>;

template <class A>
auto flat(const A& array) {
  return std::span(array.data(), array.size());
}

void demand(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// (reads, 5) words that own their memory.
auto words(std::vector<Read> reads) {
  auto* const kept = new std::vector<Read>(std::move(reads));
  const nb::capsule owner(kept, [](void* made) noexcept { delete static_cast<std::vector<Read>*>(made); });
  return nb::ndarray<nb::numpy, std::uint64_t, nb::ndim<2>>(kept->data(), {kept->size(), 5}, owner);
}

void bind_find(nb::module_& m) {
  m.def(
      "find",
      [](Ints ids, Ints first_id, Ints chunk_rows, Ints chunk_pages, Ints page_rows, Ints first_page,
         Vector<const std::uint32_t> files, Matrix<std::int64_t> places, Vector<std::uint32_t> file) {
        const auto n = ids.size(), shards = files.size();
        demand(first_id.size() == shards + 1 && chunk_rows.size() == shards && chunk_pages.size() == shards &&
                   page_rows.size() == shards && first_page.size() == shards + 1,
               "find: columns of the shard table differ");
        demand(places.shape(0) == 5 && places.shape(1) == n && file.size() == n,
               "find: an output has the wrong shape");
        std::int64_t* const out = places.data();
        const shufflestore::bind::GilReleased nogil;  // the arguments keep every array alive until the return
        return find(flat(ids),
                    {flat(first_id), flat(chunk_rows), flat(chunk_pages), flat(page_rows), flat(first_page),
                     flat(files)},
                    {out, out + n, out + 2 * n, out + 3 * n, out + 4 * n, file.data()});
      },
      "ids"_a.noconvert(), "first_id"_a.noconvert(), "chunk_rows"_a.noconvert(), "chunk_pages"_a.noconvert(),
      "page_rows"_a.noconvert(), "first_page"_a.noconvert(), "files"_a.noconvert(), "places"_a.noconvert(),
      "file"_a.noconvert(),
      "Fill in shard, chunk, row, page and entry of each id, and its file; return how many could not be.");
}

void bind_program(nb::module_& m) {
  nb::class_<Program>(m, "Program",
                      "How shards of one layout answer for a projection; see format/resolve.py.")
      .def(
          "__init__",
          [](Program* self, Ints geometry, Rows levels, Rows reads, Rows bits, Rows copies, Ints nulls) {
            demand(geometry.size() == 4 && levels.shape(1) == 4 && reads.shape(1) == 8 &&
                       bits.shape(1) == 2 && copies.shape(1) == 3,
                   "program: a table has the wrong width");
            const auto table = [](const auto& array) {
              return Table(array.data(), array.data() + array.size());
            };
            Program made{table(geometry), table(levels), table(reads),
                         table(bits),     table(copies), table(nulls)};
            made.check();
            new (self) Program(std::move(made));
          },
          "geometry"_a.noconvert(), "levels"_a.noconvert(), "reads"_a.noconvert(), "bits"_a.noconvert(),
          "copies"_a.noconvert(), "nulls"_a.noconvert());
}

void bind_resolve_window(nb::module_& m) {
  m.def(
      "resolve",
      [](Vector<const std::uint8_t> arena, Vector<const std::int32_t> slot_of, std::int64_t slot_bytes,
         const std::vector<const Program*>& programs, Ints pages, Ints entries,
         Vector<const std::uint32_t> files, Ints layouts, Ints batch_ends, Rows lay, bool verify,
         Vector<std::uint64_t> ends, Matrix<std::uint64_t> output_sizes, Array<std::int64_t, 3> regions,
         Matrix<std::int64_t> counts, Matrix<std::int64_t> offsets, Matrix<std::uint8_t> bits,
         Matrix<std::uint8_t> shift, Vector<std::uint8_t> fixed) {
        const auto n = files.size(), b = batch_ends.size(), k = lay.shape(0);
        demand(pages.size() == n && entries.size() == n && (layouts.size() == 0 || layouts.size() == n),
               "resolve: pages, entries, files, layouts differ");
        demand(slot_bytes > 0, "resolve: slots have no bytes");
        const auto fits = [&](const auto& array, std::size_t height, std::size_t width) {
          return array.shape(0) == height && array.shape(1) == width;
        };
        demand(lay.shape(1) == 4 && ends.size() == b && output_sizes.shape(0) == b && regions.shape(0) == b &&
                   regions.shape(1) == k && regions.shape(2) == 2 && fits(counts, counts.shape(0), n) &&
                   fits(offsets, counts.shape(0), n + b) && bits.shape(1) == n && shift.shape(1) == n,
               "resolve: an output has the wrong shape");
        for (std::size_t i = 0; i < k; ++i)
          demand(lay(i, 0) >= 0 && static_cast<std::size_t>(lay(i, 0)) < output_sizes.shape(1) &&
                     lay(i, 3) < static_cast<std::int64_t>(shift.shape(0)),
                 "resolve: a read names an output that does not exist");
        for (const Program* const program : programs)
          demand(program != nullptr && program->read_count() == k &&
                     program->level_count() == counts.shape(0) && program->bit_count() == bits.shape(0) &&
                     program->fixed_bytes() * ((n + 7) / 8 * 8) == fixed.size(),
                 "resolve: a program answers for another projection");
        Resolved out{{},         flat(ends),  flat(output_sizes), flat(regions), flat(counts), flat(offsets),
                     flat(bits), flat(shift), flat(fixed)};
        std::int64_t found = 0;
        {
          const shufflestore::bind::GilReleased nogil;
          found = resolve(
              {flat(arena), flat(slot_of), slot_bytes}, programs,
              {flat(pages), flat(entries), flat(files), flat(layouts), flat(batch_ends), flat(lay), verify},
              out);
        }
        return nb::make_tuple(found, words(std::move(out.reads)));
      },
      nb::sig(
          "def resolve(arena: numpy.typing.NDArray[numpy.uint8], slot_of: numpy.typing.NDArray[numpy.int32], "
          "slot_bytes: int, programs: list[Program], pages: numpy.typing.NDArray[numpy.int64], "
          "entries: numpy.typing.NDArray[numpy.int64], files: numpy.typing.NDArray[numpy.uint32], "
          "layouts: numpy.typing.NDArray[numpy.int64], batch_ends: numpy.typing.NDArray[numpy.int64], "
          "lay: numpy.typing.NDArray[numpy.int64], verify: bool, ends: numpy.typing.NDArray[numpy.uint64], "
          "output_sizes: numpy.typing.NDArray[numpy.uint64], regions: numpy.typing.NDArray[numpy.int64], "
          "counts: numpy.typing.NDArray[numpy.int64], offsets: numpy.typing.NDArray[numpy.int64], "
          "bits: numpy.typing.NDArray[numpy.uint8], shift: numpy.typing.NDArray[numpy.uint8], "
          "fixed: numpy.typing.NDArray[numpy.uint8]) -> tuple[int, numpy.typing.NDArray[numpy.uint64]]"),
      "arena"_a.noconvert(), "slot_of"_a.noconvert(), "slot_bytes"_a, "programs"_a, "pages"_a.noconvert(),
      "entries"_a.noconvert(), "files"_a.noconvert(), "layouts"_a.noconvert(), "batch_ends"_a.noconvert(),
      "lay"_a.noconvert(), "verify"_a, "ends"_a.noconvert(), "output_sizes"_a.noconvert(),
      "regions"_a.noconvert(), "counts"_a.noconvert(), "offsets"_a.noconvert(), "bits"_a.noconvert(),
      "shift"_a.noconvert(), "fixed"_a.noconvert(),
      "Resolve a window. Return the first record whose page contradicts itself, -1 if none does, -2 if a "
      "page is\n"
      "not there; and the reads, five words each, batch after batch.");
}

}  // namespace

void bind_resolve(nb::module_& m) {
  bind_find(m);
  bind_program(m);
  bind_resolve_window(m);
}
