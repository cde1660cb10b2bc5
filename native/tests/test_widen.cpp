#include <cstring>
#include <limits>

#include "check.hpp"
#include "scene.hpp"
#include "shufflestore/widen.hpp"

using namespace scene;

namespace {

int tested = 0;

template <typename Source, typename Target>
void one_pair(std::uint8_t op) {
  const Widening& widen = widening(op);
  CHECK(widen.source == sizeof(Source) && widen.target == sizeof(Target));
  for (std::size_t count = 0; count < 130; ++count) {
    Bytes in = noise(count * sizeof(Source) + 1, op + count);
    Bytes out(count * sizeof(Target) + 2, 0xAA);
    widen.run(out.data() + 1, in.data() + 1, count);  // nothing is aligned
    for (std::size_t i = 0; i < count; ++i) {
      Source narrow;
      Target wide;
      std::memcpy(&narrow, in.data() + 1 + i * sizeof narrow, sizeof narrow);
      std::memcpy(&wide, out.data() + 1 + i * sizeof wide, sizeof wide);
      CHECK(wide == static_cast<Target>(narrow));
    }
    CHECK(out.front() == 0xAA && out.back() == 0xAA);
  }
  ++tested;
}

}  // namespace

TEST(every_pair_widens_with_sign) {
  one_pair<std::uint8_t, std::uint16_t>(16), one_pair<std::uint8_t, std::int16_t>(17);
  one_pair<std::uint8_t, std::uint32_t>(18), one_pair<std::uint8_t, std::int32_t>(19);
  one_pair<std::uint8_t, std::uint64_t>(20), one_pair<std::uint8_t, std::int64_t>(21);
  one_pair<std::int8_t, std::int16_t>(25), one_pair<std::int8_t, std::int32_t>(27);
  one_pair<std::int8_t, std::int64_t>(29), one_pair<std::uint16_t, std::uint32_t>(34);
  one_pair<std::uint16_t, std::int32_t>(35), one_pair<std::uint16_t, std::uint64_t>(36);
  one_pair<std::uint16_t, std::int64_t>(37), one_pair<std::int16_t, std::int32_t>(43);
  one_pair<std::int16_t, std::int64_t>(45), one_pair<std::uint32_t, std::uint64_t>(52);
  one_pair<std::uint32_t, std::int64_t>(53), one_pair<std::int32_t, std::int64_t>(61);
}

TEST(no_other_code_means_anything) {
  int known = 0;
  for (int op = 0; op < 256; ++op) known += widening(static_cast<std::uint8_t>(op)).source != 0;
  CHECK(known == tested);
}

TEST(engines_widen_across_stage_borders_with_the_crc_of_the_files_bytes) {
  const Bytes data = noise(300001);
  const TempFile file(data);
  for (const char* engine : kEngines) {
    Reader reader(engine, 2, 0);
    reader.add(file.path(), data.size());
    for (const std::uint64_t size : {0u, 2u, 4094u, 4096u, 4098u, 65536u, 299998u}) {
      Read read = checked(copy_read(3, 5, size), data);
      read.op = 37;
      const auto batch = submit(reader, {read}, 5 + size * 4);
      CHECK(finish(batch) && !batch->failure().has_value());
      const auto out = batch->take();
      for (std::size_t i = 0; i < size / 2; ++i) {
        std::int64_t wide;
        std::memcpy(&wide, out[0].data() + 5 + i * 8, 8);
        CHECK(wide == data[3 + 2 * i] + 256 * data[4 + 2 * i]);
      }
    }
  }
}
