#include <cerrno>
#include <memory>

#include "check.hpp"
#include "scene.hpp"
#include "shufflestore/error.hpp"

using namespace scene;

TEST(thousands_of_files_are_read_with_a_few_open) {
  const Bytes data = noise(10000);
  std::vector<std::unique_ptr<TempFile>> files;
  for (int i = 0; i < 100; ++i)
    files.push_back(std::make_unique<TempFile>(Bytes(64, static_cast<std::uint8_t>(i))));
  for (const char* engine : kEngines) {
    Reader reader(engine, 3, 8);
    for (int i = 0; i < 5000; ++i) reader.add(files[static_cast<std::size_t>(i) % 100]->path(), 64);
    std::vector<Read> reads;
    for (std::uint32_t i = 0; i < 5000; ++i) {
      reads.push_back(copy_read(0, i, 1, (i * 7) % 5000));
    }
    const auto batch = submit(reader, reads, 5000);
    CHECK(finish(batch) && !batch->failure().has_value());
    const auto out = batch->take();
    for (std::uint32_t i = 0; i < 5000; ++i) CHECK(out[0].data()[i] == (i * 7) % 5000 % 100);
    CHECK(reader.counters().open_files <= 8 + 3);
    reader.close();
    CHECK(reader.counters().open_files == 0);
  }
}

TEST(files_that_are_in_use_make_room_for_others_meanwhile) {
  std::vector<std::unique_ptr<TempFile>> files;
  for (int i = 0; i < 80; ++i)
    files.push_back(std::make_unique<TempFile>(Bytes(64, static_cast<std::uint8_t>(i))));
  for (const char* engine : kEngines) {
    Reader reader(engine, 8, 64);  // most reads are of files that are open, and make them the newest
    for (const auto& file : files) reader.add(file->path(), 64);
    std::vector<Read> reads;
    for (std::uint32_t i = 0; i < 60'000; ++i) reads.push_back(copy_read(0, i, 1, i * 7919 % 80));
    const auto batch = submit(reader, reads, reads.size());
    CHECK(finish(batch) && !batch->failure().has_value());
    const auto out = batch->take();
    for (std::uint32_t i = 0; i < reads.size(); ++i) CHECK(out[0].data()[i] == i * 7919 % 80);
  }
}

TEST(a_missing_file_and_a_folder_are_errors_with_their_number) {
  for (const char* engine : kEngines) {
    Reader reader(engine, 1, 0);
    reader.add("/nowhere/at/all", kUnknownSize);
    reader.add("/tmp", kUnknownSize);
    const auto missing = submit(reader, {copy_read(0, 0, 1, 0)}, 1);
    CHECK(finish(missing) && missing->failure()->kind == FailureKind::kErrno);
    CHECK(missing->failure()->error == ENOENT);
    const auto folder = submit(reader, {copy_read(0, 0, 1, 1)}, 1);
    CHECK(finish(folder) && folder->failure()->error == EISDIR);
  }
}

namespace {
int g_open = 0;
int g_most = 0;
}  // namespace

TEST(running_out_of_descriptors_closes_idle_files_and_goes_on) {
  std::vector<std::unique_ptr<TempFile>> files;
  for (int i = 0; i < 40; ++i)
    files.push_back(std::make_unique<TempFile>(Bytes(64, static_cast<std::uint8_t>(i))));
  g_open = g_most = 0;
  FakeSys fake;
  fake.table.open = [](const char* path, int flags) {
    if (g_open >= 10) {
      errno = EMFILE;
      return -1;
    }
    const int fd = real_sys().open(path, flags);
    g_most = std::max(g_most, ++g_open);
    return fd;
  };
  fake.table.close = [](int fd) {
    --g_open;
    return real_sys().close(fd);
  };
  {
    Reader reader("pread", 1, 0);
    std::vector<Read> reads;
    for (std::uint32_t i = 0; i < 40; ++i) {
      reader.add(files[i]->path(), 64);
      reads.push_back(copy_read(0, i, 1, i));
    }
    const auto batch = submit(reader, reads, 40);
    CHECK(finish(batch) && !batch->failure().has_value());
  }
  CHECK(g_most == 10);
  CHECK(g_open == 0);
}
