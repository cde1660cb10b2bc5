// How arrays cross the boundary. Never converted: a converted copy of an output would be filled and dropped.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>

namespace shufflestore::bind {

namespace nb = nanobind;

template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Output = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

using Bytes = Vector<std::uint8_t>;
using Words = Vector<std::uint64_t>;

template <typename T, typename... Traits>
std::span<T> view(const nb::ndarray<T, Traits...>& array) {
  return {array.data(), array.size()};
}

}  // namespace shufflestore::bind
