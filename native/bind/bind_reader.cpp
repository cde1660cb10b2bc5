// Reader and Pending as Python sees them. Types check shapes, submit() checks values; no logic here.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <tuple>

#include "gil.hpp"
#include "shufflestore/reader.hpp"
#include "shufflestore/residency.hpp"
#include "views.hpp"

namespace shufflestore::bind {
namespace {

using namespace nb::literals;
using Rows = nb::ndarray<const std::uint64_t, nb::shape<-1, 5>, nb::c_contig, nb::device::cpu>;
using FailureTuple = std::tuple<std::uint64_t, std::string_view, int, std::uint64_t, std::uint64_t>;

// A reader that is dropped waits for the reads that have started; others must be able to run meanwhile.
struct DroppedReader final : Reader {
  using Reader::Reader;
  ~DroppedReader() {
    const GilReleased nogil;
    close();
  }
};

std::vector<Reader::Batch> submit(DroppedReader& reader, Rows reads, Words ends,
                                  Matrix<std::uint64_t> output_sizes, const std::shared_ptr<Flow>& flow) {
  if (output_sizes.shape(0) != ends.shape(0)) {
    throw std::invalid_argument("output_sizes has " + std::to_string(output_sizes.shape(0)) +
                                " rows, but there are " + std::to_string(ends.shape(0)) + " batches");
  }
  const std::span rows(reinterpret_cast<const Read*>(reads.data()), reads.shape(0));
  const GilReleased nogil;
  auto batches = reader.submit(rows, view(ends), view(output_sizes), output_sizes.shape(1), flow);
  // What Python has dropped nobody can take any more: it need not be read.
  for (Reader::Batch& batch : batches) {
    Pending* const pending = batch.get();
    batch = Reader::Batch(pending, [owner = std::move(batch)](Pending* dropped) { dropped->cancel(); });
  }
  return batches;
}

// Waits in slices, so that Ctrl-C is heard within 50 ms.
bool wait(Pending& pending, double timeout_seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::nanoseconds kSlice = std::chrono::milliseconds(50);
  constexpr double kForever = 1e9;  // seconds; fits the clock
  if (std::isnan(timeout_seconds)) throw std::invalid_argument("timeout_seconds is NaN");
  if (pending.is_done()) return true;
  const double limit = std::clamp(timeout_seconds, 0.0, kForever);
  const auto end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limit));
  for (;;) {
    const std::chrono::nanoseconds left = end - Clock::now();
    {
      const GilReleased nogil;
      if (pending.wait(std::clamp(left, std::chrono::nanoseconds(0), kSlice))) return true;
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (left <= kSlice) return pending.is_done();
  }
}

std::optional<FailureTuple> failure(const Pending& pending) {
  const std::optional<Failure> found = pending.failure();
  if (!found.has_value()) return std::nullopt;
  return FailureTuple(found->index, name(found->kind), found->error, found->expected, found->found);
}

// Each array owns its block, through a capsule.
nb::list take(Pending& pending) {
  nb::list arrays;
  for (Buffer& buffer : pending.take()) {
    const std::size_t size = buffer.size();
    std::uint8_t* const data = buffer.data();
    nb::capsule owner(data, [](void* block) noexcept { release_block(static_cast<std::uint8_t*>(block)); });
    buffer.release();
    arrays.append(nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(data, {size}, owner));
  }
  return arrays;
}

nb::dict counters(const DroppedReader& reader) {
  const Snapshot snapshot = reader.counters();
  nb::dict named;
  named["reads"] = snapshot.reads;
  named["bytes_read"] = snapshot.bytes_read;
  named["bytes_delivered"] = snapshot.bytes_delivered;
  named["batches"] = snapshot.batches;
  named["checksum_failures"] = snapshot.checksum_failures;
  named["open_files"] = snapshot.open_files;
  return named;
}

void bind_pending(nb::module_& m) {
  nb::class_<Pending>(m, "Pending", "One submitted batch of reads.")
      .def("wait", &wait, "timeout_seconds"_a,
           "Return True once every read has ended, False when the time is over. Hears signals.")
      .def("is_done", &Pending::is_done, "Whether every read has ended; never waits.")
      .def("failure", &failure, nb::sig("def failure(self) -> tuple[int, str, int, int, int] | None"),
           "Return (index, kind, errno, expected, found) of the first failed read, once done; None if good.")
      .def("take", &take, nb::sig("def take(self) -> list[numpy.typing.NDArray[numpy.uint8]]"),
           "Return the outputs of a good batch, once; the caller owns them.")
      .def("cancel", &Pending::cancel, nb::call_guard<GilReleased>(),
           "Start no further read of this batch; it then ends as failed, kind \"closed\".");
}

}  // namespace

void bind_reader(nb::module_& m) {
  bind_pending(m);
  nb::class_<Flow>(m, "Flow", "Bounds the outputs of batches that are taken one after another.")
      .def_prop_ro(
          "used",
          [](const Flow& self) {
            const std::shared_ptr<Pool> pool = self.pool.lock();
            return pool == nullptr ? 0 : pool->used(self);
          },
          "Bytes of outputs that have started and were not taken.");
  nb::class_<DroppedReader>(m, "Reader", "Gathers ranges of files with one engine and its own threads.")
      .def(nb::init<std::string_view, std::size_t, std::size_t>(), "engine"_a, "threads"_a,
           "max_open_files"_a = 0)
      .def(
          "add",
          [](DroppedReader& self, std::string path, std::uint64_t size) {
            return self.add(std::move(path), size);
          },
          "path"_a, "size"_a, "Register a file and return its number. Opens nothing.")
      .def("submit", &submit, "reads"_a.noconvert(), "ends"_a.noconvert(), "output_sizes"_a.noconvert(),
           "flow"_a = nb::none(),
           "Queue batches of reads, each five words as storage.base.READ has them; return one Pending each.")
      .def(
          "flow", [](const DroppedReader& self, std::uint64_t limit) { return self.flow(limit); }, "limit"_a,
          "Return what bounds the outputs, started and not taken, of batches submitted with it.")
      .def(
          "close", [](DroppedReader& self) { self.close(); }, nb::call_guard<GilReleased>(),
          "End all reads and threads, close all files. Idempotent.")
      .def("counters", &counters, nb::sig("def counters(self) -> dict[str, int]"),
           "Return what was read so far.")
      .def_prop_ro(
          "engine", [](const DroppedReader& self) { return self.engine(); }, "The name of the engine.");
  m.def("bound_block_cache", &bound_cache, "bytes"_a,
        "Keep at most so many bytes of memory for batches to come, in this process; the least asked for "
        "counts.");
  m.def("resident_bytes", &resident_bytes, "path"_a, nb::call_guard<GilReleased>(),
        "Return how many bytes of a file the page cache holds now. Reads nothing.");
}

}  // namespace shufflestore::bind
