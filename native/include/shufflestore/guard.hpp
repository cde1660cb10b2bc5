// Reading a map whose file was cut short raises SIGBUS. A guarded copy ends instead.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>

namespace shufflestore {

// Puts the handler in place, in front of whatever is there. Called at every submit, as faulthandler and
// torch install theirs later. Any other SIGBUS goes on to the handler that was there before.
void install_guard() noexcept;

// A stretch of work in which a fault within [first, last) of the map now being read ends the stretch.
class Guard {
 public:
  // Runs `copy(context, guard)`; false if a fault cut it off. `copy` must hold no object that has a
  // destructor: the jump out of it runs none.
  bool run(void (*copy)(void* context, Guard& guard), void* context) noexcept;

  // For `copy`: what it reads next. Faults elsewhere are not ours.
  void reads(const std::uint8_t* first, std::size_t size) noexcept {
    first_ = first;
    last_ = first + size;
  }

 private:
  friend struct GuardHandler;

  sigjmp_buf back_;
  const std::uint8_t* volatile first_ = nullptr;
  const std::uint8_t* volatile last_ = nullptr;
};

}  // namespace shufflestore
