// The table of contents of shufflestore._native, and how its errors become Python's.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>

#include "gil.hpp"
#include "shufflestore/cpu.hpp"
#include "shufflestore/error.hpp"
#include "shufflestore/reader.hpp"

namespace nb = nanobind;

void bind_resolve(nb::module_& m);

namespace shufflestore::bind {

void bind_crc32c(nb::module_& m);
void bind_limits(nb::module_& m);
void bind_pack(nb::module_& m);
void bind_place(nb::module_& m);
void bind_reader(nb::module_& m);
void bind_write(nb::module_& m);

namespace {

// OSError(errno, text, filename): Python itself picks FileNotFoundError and its like.
void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const IoError& error) {
    const nb::object os_error = nb::borrow(PyExc_OSError);
    const nb::object filename = error.path().empty() ? nb::none() : nb::cast(error.path());
    const nb::object value = os_error(error.error(), error.what(), filename);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(value.ptr())), value.ptr());
  }
}

}  // namespace
}  // namespace shufflestore::bind

NB_MODULE(_native, m) {
  using namespace shufflestore;
  m.doc() = "The native core: checksums, and readers that gather many small ranges of many files.";
  // Daemon threads that hold a reader at exit are no fault of ours; the tests turn the warnings on.
  nb::set_leak_warnings(std::getenv("SHUFFLESTORE_LEAK_WARNINGS") != nullptr);
  nb::register_exception_translator(bind::translate);
  bind::bind_crc32c(m);
  bind::bind_limits(m);
  bind::bind_pack(m);
  bind::bind_place(m);
  bind::bind_reader(m);
  bind::bind_write(m);
  bind_resolve(m);
  m.def("cpu_features", &cpu_features, "Return what the processor offers, and the checksum kernel in use.");
  // Threads end while the interpreter is whole.
  nb::module_::import_("atexit").attr("register")(nb::cpp_function([] {
    const bind::GilReleased nogil;
    bind::begin_the_end(std::this_thread::get_id());
    close_all_readers();
  }));
#if !defined(NDEBUG)
  PyErr_WarnEx(PyExc_RuntimeWarning, "shufflestore._native is a debug build: it is slow", 1);
#endif
}
