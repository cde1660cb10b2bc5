#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "check.hpp"
#include "scene.hpp"
#include "shufflestore/growing.hpp"

using namespace scene;

namespace {

bool holds(const Growing& growing, const Bytes& expected) {
  return std::equal(expected.begin(), expected.end(), growing.data(), growing.data() + growing.size());
}

}  // namespace

TEST(bytes_stand_in_the_order_in_which_they_came) {
  Growing growing;
  Bytes expected;
  for (std::size_t size = 0; size < 60'000; size = size * 3 / 2 + 1) {
    const Bytes more = noise(size, size);
    growing.append(more.data(), size);
    expected.insert(expected.end(), more.begin(), more.end());
    CHECK(holds(growing, expected));
  }
}

TEST(what_is_cut_is_forgotten) {
  const Bytes first = noise(5'000, 1), second = noise(3'000, 2);
  Growing growing;
  growing.append(first.data(), first.size());
  growing.append(second.data(), second.size());
  growing.cut(first.size());
  CHECK(holds(growing, first));
  growing.cut(first.size() + 1);
  CHECK(holds(growing, first));
  growing.append(second.data(), 10);
  Bytes expected = first;
  expected.insert(expected.end(), second.begin(), second.begin() + 10);
  CHECK(holds(growing, expected));
}

TEST(a_block_taken_keeps_its_bytes_and_the_next_begins_as_large) {
  const Bytes first = noise(100'000, 3), second = noise(100'000, 4);
  Growing growing;
  growing.append(first.data(), first.size());
  const Buffer taken = growing.take();
  CHECK(growing.size() == 0);
  growing.append(second.data(), 1);
  const std::uint8_t* const begun = growing.data();
  growing.append(second.data() + 1, second.size() - 1);
  CHECK(growing.data() == begun);
  CHECK(holds(growing, second));
  CHECK(std::memcmp(taken.data(), first.data(), first.size()) == 0);
}

TEST(taking_nothing_gives_a_block) {
  Growing growing;
  CHECK(growing.take().data() != nullptr);
  CHECK(growing.take().data() != nullptr);
}

TEST(sizes_beyond_reason_are_refused_and_change_nothing) {
  Growing growing;
  growing.append("abc", 3);
  CHECK(check::throws<std::bad_alloc>([&] { growing.append("", ~std::size_t{0}); }));
  CHECK(check::throws<std::bad_alloc>([&] { growing.append("", std::size_t{1} << 60); }));
  CHECK(holds(growing, {'a', 'b', 'c'}));
}
