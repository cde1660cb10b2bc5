// What the processor can do, asked once.
#pragma once

#include <string>
#include <vector>

namespace shufflestore {

struct Cpu {
  bool sse42 = false;       // crc32 instruction
  bool pclmul = false;      // 128-bit carry-less multiply
  bool avx2 = false;        // 256-bit integers
  bool vpclmul256 = false;  // carry-less multiply on 256 bits
  bool avx512 = false;      // F, BW, VL, DQ
  bool vpclmul512 = false;  // avx512 with VBMI and carry-less multiply on 512 bits
};

const Cpu& cpu() noexcept;

// The names of the features above that are present, then the checksum kernel in use ("crc32c:NAME").
std::vector<std::string> cpu_features();

}  // namespace shufflestore
