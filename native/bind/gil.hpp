// Letting the GIL go, and taking it back only while there is an interpreter to go back to.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace shufflestore::bind {

// Set once the interpreter has begun to end, by the thread that ends it.
inline std::atomic<bool> g_is_ending{false};
inline std::thread::id g_ender;

inline bool is_finalizing() noexcept {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Before 3.14, Python ends a daemon thread that asks for the GIL too late by unwinding its stack, and a C++
// frame that cannot be unwound then aborts the process. So such a thread stays here instead, as 3.14 has it.
// Should the end not come (somebody joins this very thread at exit), it goes on after a moment.
inline void outlive_interpreter() noexcept {
  if (!g_is_ending.load(std::memory_order_acquire) || std::this_thread::get_id() == g_ender) return;
  for (int waited = 0; waited < 400; ++waited) {
    while (is_finalizing()) ::pause();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// nanobind's gil_scoped_release, with that care.
class GilReleased {
 public:
  GilReleased() noexcept : state_(PyEval_SaveThread()) {}
  ~GilReleased() {
    outlive_interpreter();
    PyEval_RestoreThread(state_);
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace shufflestore::bind
