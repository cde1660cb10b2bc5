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

// Python's arrays, kept alive; what they hold may change between calls.
struct KeptShards {
  Ints first_id, page_rows, chunk_rows, chunk_pages, first_page, layout;
  Vector<const std::uint32_t> files;
  Ints chunks, chunk_first_row, chunk_first_page;

  ShardTable table() const {
    return {flat(first_id), flat(page_rows), flat(chunk_rows), flat(chunk_pages),     flat(first_page),
            flat(layout),   flat(files),     flat(chunks),     flat(chunk_first_row), flat(chunk_first_page)};
  }
};

struct KeptArena {
  Vector<const std::uint8_t> data;
  Vector<const std::int32_t> slot_of;
  std::int64_t slot_bytes;

  Arena arena() const { return {flat(data), flat(slot_of), slot_bytes}; }
};

void bind_shards(nb::module_& m) {
  nb::class_<KeptShards>(m, "Shards",
                         "Which records each shard has, and how its pages are cut; see format/resolve.py.")
      .def(
          "__init__",
          [](KeptShards* self, Ints first_id, Ints page_rows, Ints chunk_rows, Ints chunk_pages,
             Ints first_page, Ints layout, Vector<const std::uint32_t> files, Ints chunks,
             Ints chunk_first_row, Ints chunk_first_page) {
            const auto n = files.size();
            demand(first_id.size() == n + 1 && first_page.size() == n + 1 && page_rows.size() == n &&
                       chunk_rows.size() == n && chunk_pages.size() == n && layout.size() == n &&
                       chunks.size() == n && chunk_first_row.size() == chunk_first_page.size(),
                   "shards: columns differ");
            new (self) KeptShards{first_id, page_rows, chunk_rows, chunk_pages,     first_page,
                                  layout,   files,     chunks,     chunk_first_row, chunk_first_page};
          },
          "first_id"_a.noconvert(), "page_rows"_a.noconvert(), "chunk_rows"_a.noconvert(),
          "chunk_pages"_a.noconvert(), "first_page"_a.noconvert(), "layout"_a.noconvert(),
          "files"_a.noconvert(), "chunks"_a.noconvert(), "chunk_first_row"_a.noconvert(),
          "chunk_first_page"_a.noconvert())
      .def(
          "find",
          [](const KeptShards& self, Ints ids, Matrix<std::int64_t> places) {
            const auto n = ids.size();
            demand(places.shape(0) == 5 && places.shape(1) == n, "find: places is not (5, ids)");
            std::int64_t* const out = places.data();
            const ShardTable table = self.table();
            const shufflestore::bind::GilReleased
                nogil;  // the arguments keep every array alive until the return
            Finder finder(table);
            std::size_t unknown = 0;
            for (std::size_t i = 0; i < n; ++i) {
              Place place{};
              if (!finder.find(ids.data()[i], place)) ++unknown;
              out[i] = place.shard;
              out[n + i] = place.chunk;
              out[2 * n + i] = place.row;
              out[3 * n + i] = place.page;
              out[4 * n + i] = place.entry;
            }
            return unknown;
          },
          "ids"_a.noconvert(), "places"_a.noconvert(),
          "Fill in shard, chunk, row, page and entry of each id; return how many lie in shards not known "
          "yet.");
}

void bind_arena(nb::module_& m) {
  nb::class_<KeptArena>(m, "Arena", "Checked pages of row indexes in memory; see format/resolve.py.")
      .def(
          "__init__",
          [](KeptArena* self, Vector<const std::uint8_t> data, Vector<const std::int32_t> slot_of,
             std::int64_t slot_bytes) {
            demand(slot_bytes > 0, "arena: slots have no bytes");
            new (self) KeptArena{data, slot_of, slot_bytes};
          },
          "data"_a.noconvert(), "slot_of"_a.noconvert(), "slot_bytes"_a);
}

void bind_program(nb::module_& m) {
  nb::class_<Program>(m, "Program",
                      "How shards of one layout answer for a projection; see format/resolve.py.")
      .def(
          "__init__",
          [](Program* self, Ints geometry, Rows levels, Rows reads, Rows bits, Rows copies, Ints nulls) {
            demand(geometry.size() == 4 && levels.shape(1) == 4 && reads.shape(1) == 10 &&
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
      [](const KeptArena& arena, const KeptShards& shards, const std::vector<const Program*>& programs,
         Ints ids, Ints batch_ends, Rows lay, bool verify, Vector<std::uint64_t> ends,
         Matrix<std::uint64_t> output_sizes, Array<std::int64_t, 3> regions, Matrix<std::int64_t> counts,
         Matrix<std::int64_t> offsets, Matrix<std::uint8_t> bits, Matrix<std::uint8_t> shift,
         Vector<std::uint8_t> fixed) {
        const auto n = ids.size(), b = batch_ends.size(), k = lay.shape(0);
        const auto fits = [&](const auto& array, std::size_t height, std::size_t width) {
          return array.shape(0) == height && array.shape(1) == width;
        };
        demand(lay.shape(1) == 2 && ends.size() == b && output_sizes.shape(0) == b && regions.shape(0) == b &&
                   regions.shape(1) == k && regions.shape(2) == 2 && counts.shape(1) == n &&
                   fits(offsets, counts.shape(0), n + b) && bits.shape(1) == n && shift.shape(1) == n,
               "resolve: an output has the wrong shape");
        for (std::size_t i = 0; i < k; ++i)
          demand(lay(i, 0) >= 0 && static_cast<std::size_t>(lay(i, 0)) < output_sizes.shape(1) &&
                     lay(i, 1) < static_cast<std::int64_t>(shift.shape(0)),
                 "resolve: a read names an output that does not exist");
        for (const Program* const program : programs)
          demand(program != nullptr && program->read_count() == k &&
                     program->level_count() == counts.shape(0) && program->bit_count() == bits.shape(0) &&
                     program->fixed_bytes() * ((n + 7) / 8 * 8) == fixed.size(),
                 "resolve: a program answers for another projection");
        Resolved out{{},         flat(ends),  flat(output_sizes), flat(regions), flat(counts), flat(offsets),
                     flat(bits), flat(shift), flat(fixed)};
        const ShardTable table = shards.table();
        std::int64_t found = 0;
        {
          const shufflestore::bind::GilReleased nogil;
          found =
              resolve(arena.arena(), table, programs, {flat(ids), flat(batch_ends), flat(lay), verify}, out);
        }
        return nb::make_tuple(found, words(std::move(out.reads)));
      },
      nb::sig(
          "def resolve(arena: Arena, shards: Shards, programs: list[Program], "
          "ids: numpy.typing.NDArray[numpy.int64], batch_ends: numpy.typing.NDArray[numpy.int64], "
          "lay: numpy.typing.NDArray[numpy.int64], verify: bool, ends: numpy.typing.NDArray[numpy.uint64], "
          "output_sizes: numpy.typing.NDArray[numpy.uint64], regions: numpy.typing.NDArray[numpy.int64], "
          "counts: numpy.typing.NDArray[numpy.int64], offsets: numpy.typing.NDArray[numpy.int64], "
          "bits: numpy.typing.NDArray[numpy.uint8], shift: numpy.typing.NDArray[numpy.uint8], "
          "fixed: numpy.typing.NDArray[numpy.uint8]) -> tuple[int, numpy.typing.NDArray[numpy.uint64]]"),
      "arena"_a, "shards"_a, "programs"_a, "ids"_a.noconvert(), "batch_ends"_a.noconvert(),
      "lay"_a.noconvert(), "verify"_a, "ends"_a.noconvert(), "output_sizes"_a.noconvert(),
      "regions"_a.noconvert(), "counts"_a.noconvert(), "offsets"_a.noconvert(), "bits"_a.noconvert(),
      "shift"_a.noconvert(), "fixed"_a.noconvert(),
      "Resolve a window. Return -1, -2 if a page is not there, -3 if a shard is not known yet, or the first "
      "record\n"
      "whose page contradicts itself; and the reads, five words each, batch after batch.");
}

}  // namespace

void bind_resolve(nb::module_& m) {
  bind_shards(m);
  bind_arena(m);
  bind_program(m);
  bind_resolve_window(m);
}
