// Polynomial arithmetic of CRC32C, at compile time. Reflected: bit i of a word stands for x^(31 - i).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace shufflestore::crc32c_math {

inline constexpr std::uint32_t kPolynomial = 0x82F63B78;

constexpr std::uint32_t times_x(std::uint32_t value) noexcept {
  return (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0);
}

// x^power modulo the polynomial.
constexpr std::uint32_t x_power(std::size_t power) noexcept {
  std::uint32_t value = 0x80000000;  // x^0
  for (std::size_t i = 0; i < power; ++i) value = times_x(value);
  return value;
}

constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) noexcept {
  std::uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit, b = times_x(b)) {
    if ((a >> bit) & 1) product ^= b;
  }
  return product;
}

// The factor that moves 64 bits `bits` bits further up the message, for a carry-less multiply.
// The product of two reflected 64-bit words stands one place too low, hence the - 1; the low word of
// a 128-bit block is 64 bits ahead of the high one.
constexpr std::uint64_t low_fold(std::size_t bits) noexcept {
  return static_cast<std::uint64_t>(x_power(bits + 63)) << 32;
}
constexpr std::uint64_t high_fold(std::size_t bits) noexcept {
  return static_cast<std::uint64_t>(x_power(bits - 1)) << 32;
}

// tables[k][b]: the state after byte b and then k zero bytes.
using ByteTables = std::array<std::array<std::uint32_t, 256>, 8>;
constexpr ByteTables byte_tables() noexcept {
  ByteTables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = times_x(value);
    tables[0][byte] = value;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t value = tables[k - 1][byte];
      tables[k][byte] = (value >> 8) ^ tables[0][value & 0xFF];
    }
  }
  return tables;
}

// Moves a state over a fixed number of zero bytes: four lookups.
using ShiftTables = std::array<std::array<std::uint32_t, 256>, 4>;
constexpr ShiftTables shift_tables(std::size_t zero_bytes) noexcept {
  ShiftTables tables{};
  const std::uint32_t factor = x_power(8 * zero_bytes);
  for (std::size_t k = 0; k < 4; ++k) {
    for (std::uint32_t bit = 1; bit < 256; bit <<= 1) {
      const std::uint32_t moved = multiply(bit << (8 * k), factor);
      for (std::uint32_t low = 0; low < bit; ++low) tables[k][bit | low] = tables[k][low] ^ moved;
    }
  }
  return tables;
}

}  // namespace shufflestore::crc32c_math
