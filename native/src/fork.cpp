#include "shufflestore/fork.hpp"

#include <pthread.h>

#include <atomic>

namespace shufflestore {
namespace {

std::atomic<std::uint64_t> g_generation{1};

// Leaked: native threads may outlive static destructors at exit.
std::mutex& make_lock() noexcept {
  static std::mutex& lock = *new std::mutex;
  return lock;
}

const bool kRegistered = [] {
  make_lock();
  pthread_atfork([] { process_lock().lock(); }, [] { process_lock().unlock(); },
                 [] {
                   g_generation.fetch_add(1, std::memory_order_relaxed);
                   process_lock().unlock();
                 });
  return true;
}();

}  // namespace

std::uint64_t process_generation() noexcept {
  return g_generation.load(std::memory_order_relaxed);
}

std::mutex& process_lock() noexcept {
  static std::mutex& lock = make_lock();
  (void)kRegistered;
  return lock;
}

}  // namespace shufflestore
