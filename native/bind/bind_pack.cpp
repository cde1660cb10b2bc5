// Dicts to columns: takes records from an iterator as long as their values are of the plain kinds that need
// no closer look. It decides nothing about other values: such a record goes back to the caller, whole.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "columns.hpp"

namespace shufflestore::bind {
namespace {

using namespace nb::literals;

class Packer {
 public:
  explicit Packer(bool ignores_other_keys) : ignores_other_keys_(ignores_other_keys) {}
  Packer(const Packer&) = delete;
  Packer& operator=(const Packer&) = delete;

  template <typename Kind, typename... Arguments>
  void add(Arguments&&... arguments) {
    if (count_ != 0) throw std::invalid_argument("records were taken already");
    columns_.push_back(std::make_unique<Kind>(std::forward<Arguments>(arguments)...));
  }

  // Between two records any Python code may run, this packer's own functions among it.
  std::optional<nb::list> consume(nb::handle records, std::int64_t byte_limit) {
    constexpr std::uint64_t kPatience = 1024;  // records until Ctrl-C is heard
    if (!PyIter_Check(records.ptr())) throw nb::type_error("records is no iterator");
    for (std::uint64_t turn = 1;; ++turn) {
      if (turn % kPatience == 0 && PyErr_CheckSignals() != 0) throw nb::python_error();
      const nb::object record = nb::steal(PyIter_Next(records.ptr()));
      if (!record.is_valid()) {
        if (PyErr_Occurred()) throw nb::python_error();
        return std::nullopt;
      }
      const bool is_plain = take(record.ptr());
      if (is_plain && byte_count_ < byte_limit) continue;
      nb::list left;
      if (!is_plain) left.append(record);
      return left;
    }
  }

  nb::list hand_over() {
    nb::list taken;
    for (const auto& column : columns_) taken.append(column->hand_over());
    count_ = 0;
    byte_count_ = 0;
    return taken;
  }

  std::size_t count() const { return count_; }
  std::int64_t byte_count() const { return byte_count_; }

 private:
  bool has_keys(PyObject* record) const {
    if (!PyDict_CheckExact(record)) return false;
    const auto size = static_cast<std::size_t>(PyDict_GET_SIZE(record));
    if (size == columns_.size()) return true;  // as many, and every column will be looked for
    if (!ignores_other_keys_) return false;
    PyObject* key = nullptr;
    for (Py_ssize_t at = 0; PyDict_Next(record, &at, &key, nullptr);)
      if (!PyUnicode_Check(key)) return false;
    return true;
  }

  // All or nothing.
  bool take(PyObject* record) {
    if (!has_keys(record)) return false;
    std::int64_t bytes = 0;
    try {
      for (const auto& column : columns_) {
        PyObject* const value = PyDict_GetItemWithError(record, column->name());
        if (value == nullptr) PyErr_Clear();  // a key's own comparison may raise
        const std::int64_t added = value == nullptr ? kNotPlain : column->take(value);
        if (added == kNotPlain) {
          forget_partial();
          return false;
        }
        bytes += added;
      }
    } catch (...) {
      forget_partial();
      throw;
    }
    ++count_;
    byte_count_ += bytes;
    return true;
  }

  void forget_partial() noexcept {
    for (const auto& column : columns_) column->keep(count_);
  }

  bool ignores_other_keys_;
  std::vector<std::unique_ptr<Column>> columns_;
  std::size_t count_ = 0;
  std::int64_t byte_count_ = 0;
};

}  // namespace

void bind_pack(nb::module_& m) {
  nb::class_<Packer>(m, "Packer", "Takes the plain records of an iterator, column by column.")
      .def(nb::init<bool>(), "ignores_other_keys"_a)
      .def("add_scalars", &Packer::add<Scalars, nb::str, char, std::size_t, std::vector<nb::object>>,
           "name"_a, "family"_a, "width"_a, "types"_a,
           "Expect numbers (family i, u, f) or booleans (b) of so many bytes; besides Python's, of these "
           "types.")
      .def("add_arrays",
           &Packer::add<Arrays, nb::str, nb::object, char, std::size_t, Arrays::Shape, std::int64_t>,
           "name"_a, "type"_a, "family"_a, "width"_a, "shape"_a.none(), "most"_a,
           "Expect arrays of this shape, or of one dimension if it is None; then at most so many items in "
           "all.")
      .def("add_texts", &Packer::add<Texts, nb::str, bool, std::int64_t>, "name"_a, "is_bytes"_a, "most"_a,
           "Expect strings or byte strings, at most so many bytes in all.")
      .def("consume", &Packer::consume, "records"_a, "byte_limit"_a,
           nb::sig("def consume(self, records: collections.abc.Iterator[object], byte_limit: int) -> "
                   "list[typing.Any] | None"),
           "Copy records until about so many bytes are held; return [], or [the record that is not plain], "
           "or\n"
           "None at the end. What an iterator raises goes through; the records before it are held.")
      .def("hand_over", &Packer::hand_over,
           nb::sig("def hand_over(self) -> list[tuple[numpy.typing.NDArray[numpy.uint8], "
                   "numpy.typing.NDArray[numpy.uint8] | None]]"),
           "Return values and, where lengths differ, their ends as int64, of each column, and hold none.")
      .def_prop_ro("count", &Packer::count, "Records held.")
      .def_prop_ro("byte_count", &Packer::byte_count, "About their bytes.");
}

}  // namespace shufflestore::bind
