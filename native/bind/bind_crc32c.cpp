// CRC32C as Python sees it.
#include <stdexcept>

#include "gil.hpp"
#include "shufflestore/crc32c.hpp"
#include "shufflestore/spans.hpp"
#include "views.hpp"

namespace shufflestore::bind {
namespace {

using namespace nb::literals;

// Any contiguous buffer, held while its bytes are in use.
class Contiguous {
 public:
  explicit Contiguous(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  ~Contiguous() { PyBuffer_Release(&buffer_); }
  Contiguous(const Contiguous&) = delete;
  Contiguous& operator=(const Contiguous&) = delete;
  const void* data() const { return buffer_.buf; }
  std::size_t size() const { return static_cast<std::size_t>(buffer_.len); }

 private:
  Py_buffer buffer_{};
};

std::uint32_t crc(nb::handle data, std::uint32_t seed) {
  constexpr std::size_t kWorthIt = 16 << 10;  // below, letting the GIL go costs more than it gives
  const Contiguous bytes(data);
  if (bytes.size() < kWorthIt) return crc32c(bytes.data(), bytes.size(), seed);
  const GilReleased nogil;
  return crc32c(bytes.data(), bytes.size(), seed);
}

void spans(Bytes data, Words offsets, Words sizes, Output<std::uint32_t> out) {
  const GilReleased nogil;
  crc32c_spans(view(data), view(offsets), view(sizes), view(out));
}

std::uint32_t chain(Bytes data, Words offsets, Words sizes, std::uint32_t seed) {
  const GilReleased nogil;
  return crc32c_chain(view(data), view(offsets), view(sizes), seed);
}

}  // namespace

void bind_crc32c(nb::module_& m) {
  m.def("crc32c", &crc, "data"_a, "seed"_a = 0,
        nb::sig("def crc32c(data: typing_extensions.Buffer, seed: int = 0) -> int"),
        "Return the CRC32C of the bytes of any contiguous buffer; `seed` is the CRC of what came before.");
  m.def("crc32c_spans", &spans, "data"_a.noconvert(), "offsets"_a.noconvert(), "sizes"_a.noconvert(),
        "out"_a.noconvert(), "Fill out[i] with the CRC32C of data[offsets[i]:][:sizes[i]].");
  m.def("crc32c_chain", &chain, "data"_a.noconvert(), "offsets"_a.noconvert(), "sizes"_a.noconvert(),
        "seed"_a = 0, "Return the CRC32C of the spans data[offsets[i]:][:sizes[i]], one after another.");
}

}  // namespace shufflestore::bind
