// A test framework in thirty lines: TEST registers, CHECK counts and goes on, main() reports.
#pragma once

#include <cstdio>
#include <exception>
#include <vector>

namespace check {

struct Case {
  const char* name;
  void (*run)();
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
inline int failures = 0;
inline bool add(const char* name, void (*run)()) {
  cases().push_back({name, run});
  return true;
}

template <typename E, typename F>
bool throws(F&& f) {
  try {
    f();
  } catch (const E&) {
    return true;
  }
  return false;
}

}  // namespace check

#define TEST(name)                                          \
  static void name();                                       \
  static const bool name##_added = check::add(#name, name); \
  static void name()

#define CHECK(...)                                                          \
  do {                                                                      \
    if (!(__VA_ARGS__)) {                                                   \
      ++check::failures;                                                    \
      std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #__VA_ARGS__); \
    }                                                                       \
  } while (false)

int main() {
  for (const check::Case& test : check::cases()) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    try {
      test.run();
    } catch (const std::exception& error) {
      ++check::failures;
      std::printf("%s: threw %s\n", test.name, error.what());
    }
  }
  return check::failures == 0 ? 0 : 1;
}
