// What must be known about fork(): the child has one thread, and every lock as it happened to be.
#pragma once

#include <cstdint>
#include <mutex>

namespace shufflestore {

// Counts the forks between the first process and this one. An object that remembers another number was
// made by a parent: its threads do not exist here and its locks may be held by nobody.
std::uint64_t process_generation() noexcept;

// The one lock that is held across fork(), so that what it guards is whole in the child. A leaf: nothing
// else is locked, and nothing may block, while it is held.
std::mutex& process_lock() noexcept;

}  // namespace shufflestore
