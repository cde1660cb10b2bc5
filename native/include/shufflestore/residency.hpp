// How much of a file the page cache holds.
#pragma once

#include <cstdint>
#include <string>

namespace shufflestore {

// Bytes of the file at `path` that are in memory now, in whole pages. Reads nothing and changes nothing.
// Throws IoError.
std::uint64_t resident_bytes(const std::string& path);

}  // namespace shufflestore
