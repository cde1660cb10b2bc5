// The columns of bind_pack.cpp: each copies values of one plain kind, and refuses all others.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "shufflestore/growing.hpp"

namespace shufflestore::bind {

namespace nb = nanobind;

inline constexpr std::int64_t kNotPlain = -1;
static_assert(std::endian::native == std::endian::little);

// What Python raised is dropped: the caller of consume() meets it again, and tells more of it.
inline std::int64_t not_plain_after_error() {
  PyErr_Clear();
  return kNotPlain;
}

// The values of one column, end to end. A value that has no fixed size has an end as well, counted in items.
class Column {
 public:
  Column(nb::str name, std::size_t item_bytes, std::optional<std::size_t> value_bytes, std::int64_t most)
      : name_(std::move(name)), item_bytes_(item_bytes), value_bytes_(value_bytes), most_(most) {
    if (item_bytes == 0) throw std::invalid_argument("items of no bytes");
  }
  virtual ~Column() = default;
  Column(const Column&) = delete;
  Column& operator=(const Column&) = delete;

  PyObject* name() const { return name_.ptr(); }
  // Copies a value; returns about its bytes, or kNotPlain. Runs no Python code, so that the value stays.
  virtual std::int64_t take(PyObject* value) = 0;

  // Forgets all but the first `count` values.
  void keep(std::size_t count) noexcept {
    if (value_bytes_.has_value()) {
      values_.cut(count * *value_bytes_);
      return;
    }
    std::int64_t end = 0;
    if (count != 0) std::memcpy(&end, ends_.data() + (count - 1) * sizeof end, sizeof end);
    values_.cut(static_cast<std::size_t>(end) * item_bytes_);
    ends_.cut(count * sizeof end);
  }

  nb::tuple hand_over() {
    nb::object values = array_of(values_), ends = nb::none();
    if (!value_bytes_.has_value()) ends = array_of(ends_);
    return nb::make_tuple(values, ends);
  }

 protected:
  bool put(const void* data, std::size_t bytes) {
    if (!value_bytes_.has_value()) {
      const auto end = static_cast<std::int64_t>((values_.size() + bytes) / item_bytes_);
      if (end > most_) return false;
      ends_.append(&end, sizeof end);
    }
    values_.append(data, bytes);
    return true;
  }

  std::size_t item_bytes() const { return item_bytes_; }

 private:
  // It owns its block, through a capsule.
  static nb::object array_of(Growing& growing) {
    const std::size_t size = growing.size();
    Buffer buffer = growing.take();
    std::uint8_t* const data = buffer.data();
    nb::capsule owner(data, [](void* block) noexcept { release_block(static_cast<std::uint8_t*>(block)); });
    buffer.release();
    return nb::cast(nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(data, {size}, owner));
  }

  nb::str name_;
  std::size_t item_bytes_;
  std::optional<std::size_t> value_bytes_;
  std::int64_t most_;
  Growing values_, ends_;
};

// Numbers and booleans: Python's own types, and those named, which are numpy's.
class Scalars final : public Column {
 public:
  Scalars(nb::str name, char family, std::size_t width, std::vector<nb::object> types)
      : Column(std::move(name), width, width, 0), family_(family), types_(std::move(types)) {
    const bool is_known = family == 'f'   ? width == 4 || width == 8
                          : family == 'b' ? width == 1
                                          : (family == 'i' || family == 'u') && width <= 8;
    if (!is_known) throw std::invalid_argument("scalars of no known kind");
  }

  std::int64_t take(PyObject* value) override {
    constexpr std::int64_t kBytes = 8;
    return (family_ == 'f'   ? real(value)
            : family_ == 'b' ? truth(value)
                             : integer(value))
               ? kBytes
               : kNotPlain;
  }

 private:
  bool is_named(PyObject* value) const {
    for (const nb::object& type : types_)
      if (reinterpret_cast<PyObject*>(Py_TYPE(value)) == type.ptr()) return true;
    return false;
  }

  bool integer(PyObject* value) {
    if (PyLong_CheckExact(value)) return whole(value);
    if (!is_named(value)) return false;
    const nb::object number = nb::steal(PyNumber_Index(value));
    return number.is_valid() ? whole(number.ptr()) : not_plain_after_error() != kNotPlain;
  }

  bool whole(PyObject* value) {
    const std::size_t bits = 8 * item_bytes();
    int overflow = 0;
    const std::int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow > 0 && family_ == 'u' && bits == 64) {
      const std::uint64_t large = PyLong_AsUnsignedLongLong(value);
      if (PyErr_Occurred()) return not_plain_after_error() != kNotPlain;
      return put(&large, sizeof large);
    }
    const bool has_sign = family_ == 'i';
    const std::size_t digits = has_sign ? bits - 1 : std::min<std::size_t>(bits, 63);
    const auto high = static_cast<std::int64_t>((std::uint64_t{1} << digits) - 1);
    if (overflow != 0 || number > high || number < (has_sign ? -high - 1 : 0)) return false;
    return put(&number, item_bytes());  // the low bytes
  }

  bool real(PyObject* value) {
    if (!PyFloat_CheckExact(value) && !is_named(value)) return false;
    const double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) return not_plain_after_error() != kNotPlain;
    if (item_bytes() == sizeof number) return put(&number, sizeof number);
    const auto narrow = static_cast<float>(number);
    return put(&narrow, sizeof narrow);
  }

  bool truth(PyObject* value) {
    if (!PyBool_Check(value) && !is_named(value)) return false;
    const int is_true = PyObject_IsTrue(value);
    if (is_true < 0) return not_plain_after_error() != kNotPlain;
    const auto byte = static_cast<std::uint8_t>(is_true);
    return put(&byte, 1);
  }

  char family_;
  std::vector<nb::object> types_;
};

// The family of a buffer's items: i, u or f; 0 for others, among them those of another byte order.
inline char family_of(const char* format) {
  if (format == nullptr || format[0] == '\0' || format[1] != '\0') return 0;
  if (std::strchr("bhilq", format[0]) != nullptr) return 'i';
  if (std::strchr("BHILQ", format[0]) != nullptr) return 'u';
  return std::strchr("efd", format[0]) != nullptr ? 'f' : '\0';
}

// What an array shows of itself, for as long as this lives.
class Shown {
 public:
  explicit Shown(PyObject* array) : is_held_(PyObject_GetBuffer(array, &buffer_, PyBUF_RECORDS_RO) == 0) {}
  ~Shown() {
    if (is_held_) PyBuffer_Release(&buffer_);
  }
  Shown(const Shown&) = delete;
  Shown& operator=(const Shown&) = delete;
  bool is_held() const { return is_held_; }
  const Py_buffer& operator*() const { return buffer_; }

 private:
  Py_buffer buffer_{};
  bool is_held_;
};

// Arrays of numbers: of one shape, or of one dimension and any length.
class Arrays final : public Column {
 public:
  using Shape = std::optional<std::vector<std::int64_t>>;

  Arrays(nb::str name, nb::object type, char family, std::size_t width, Shape shape, std::int64_t most)
      : Column(std::move(name), width, bytes_of(shape, width), most),
        type_(std::move(type)),
        family_(family),
        shape_(std::move(shape)) {}

  std::int64_t take(PyObject* value) override {
    if (reinterpret_cast<PyObject*>(Py_TYPE(value)) != type_.ptr()) return kNotPlain;
    const Shown shown(value);
    if (!shown.is_held()) return not_plain_after_error();
    const Py_buffer& view = *shown;
    const bool is_plain = family_of(view.format) == family_ &&
                          static_cast<std::size_t>(view.itemsize) == item_bytes() && is_of_shape(view) &&
                          PyBuffer_IsContiguous(&view, 'C');
    return is_plain && put(view.buf, static_cast<std::size_t>(view.len)) ? view.len + 8 : kNotPlain;
  }

 private:
  static std::optional<std::size_t> bytes_of(const Shape& shape, std::size_t width) {
    if (!shape.has_value()) return std::nullopt;
    for (const std::int64_t length : *shape) {
      if (length < 0) throw std::invalid_argument("a negative length");
      width *= static_cast<std::size_t>(length);
    }
    return width;
  }

  bool is_of_shape(const Py_buffer& view) const {
    if (!shape_.has_value()) return view.ndim == 1;
    return static_cast<std::size_t>(view.ndim) == shape_->size() &&
           std::equal(shape_->begin(), shape_->end(), view.shape);
  }

  nb::object type_;
  char family_;
  Shape shape_;
};

// Strings, as UTF-8, or byte strings.
class Texts final : public Column {
 public:
  Texts(nb::str name, bool is_bytes, std::int64_t most)
      : Column(std::move(name), 1, std::nullopt, most), is_bytes_(is_bytes) {}

  std::int64_t take(PyObject* value) override {
    if (is_bytes_) return PyBytes_CheckExact(value) ? take_bytes(value) : kNotPlain;
    if (!PyUnicode_CheckExact(value)) return kNotPlain;
    if (PyUnicode_IS_COMPACT_ASCII(value)) return take(PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value));
    // Not PyUnicode_AsUTF8: the caller's string would keep what that makes.
    const nb::object encoded = nb::steal(PyUnicode_AsUTF8String(value));
    return encoded.is_valid() ? take_bytes(encoded.ptr()) : not_plain_after_error();
  }

 private:
  std::int64_t take_bytes(PyObject* value) { return take(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)); }

  std::int64_t take(const void* data, Py_ssize_t size) {
    return put(data, static_cast<std::size_t>(size)) ? size + 4 : kNotPlain;
  }

  bool is_bytes_;
};

}  // namespace shufflestore::bind
