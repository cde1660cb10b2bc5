// Letting the GIL go, and taking it back only while there is an interpreter to go back to.
#pragma once

#include <nanobind/nanobind.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace shufflestore::bind {

// Set once the interpreter has begun to end, by the thread that ends it.
inline std::atomic<bool> g_is_ending{false};
inline std::thread::id g_ender;
// Threads that have made up their mind to take the GIL back and do not have it yet.
inline std::atomic<int> g_returning{0};

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
  for (int waited = 0; waited < 2000; ++waited) {
    while (is_finalizing()) ::pause();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// For the thread that ends the interpreter, before it does; it holds no GIL meanwhile. From here on no other
// thread asks for the GIL, and those that were about to have it.
inline void begin_the_end(std::thread::id ender) noexcept {
  constexpr int kPatience = 5000;  // milliseconds; they need no more than their turn, late as that may come
  g_ender = ender;
  g_is_ending.store(true);
  for (int waited = 0; waited < kPatience && g_returning.load() > 0; ++waited) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// A forked child has none of its parent's threads.
inline const bool g_forgets_on_fork = pthread_atfork(nullptr, nullptr, [] { g_returning.store(0); }) == 0;

// nanobind's gil_scoped_release, with that care.
class GilReleased {
 public:
  GilReleased() noexcept : state_(PyEval_SaveThread()) {}
  ~GilReleased() {
    g_returning.fetch_add(1);
    if (g_is_ending.load() && std::this_thread::get_id() != g_ender) {
      g_returning.fetch_sub(1);
      outlive_interpreter();
      g_returning.fetch_add(1);
    }
    PyEval_RestoreThread(state_);
    g_returning.fetch_sub(1);
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace shufflestore::bind
