// Threads that find no memory: their batches fail, the process goes on.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "check.hpp"
#include "scene.hpp"

using namespace scene;

namespace {

std::atomic<bool> g_is_short{false};
thread_local bool t_is_test = false;  // the one that asks, and may have memory

void* obtain(std::size_t size) {
  void* const block = g_is_short && !t_is_test ? nullptr : std::malloc(size);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

const Bytes kData = noise(4'000'000);

}  // namespace

void* operator new(std::size_t size) {
  return obtain(size);
}
void* operator new[](std::size_t size) {
  return obtain(size);
}
void operator delete(void* block) noexcept {
  std::free(block);
}
void operator delete[](void* block) noexcept {
  std::free(block);
}
void operator delete(void* block, std::size_t) noexcept {
  std::free(block);
}
void operator delete[](void* block, std::size_t) noexcept {
  std::free(block);
}

TEST(reader_threads_without_memory_fail_batches_and_nothing_else) {
  t_is_test = true;
  const TempFile file(kData);
  for (const char* engine : kEngines) {
    for (const bool is_early : {true, false}) {  // short from the threads' first moment on, or later
      Reader reader(engine, 4, 0);
      reader.add(file.path(), kData.size());
      const auto half = [&](std::uint64_t at, std::uint64_t slot) {
        return checked(copy_read(at, slot, 500), kData);
      };
      if (!is_early) CHECK(finish(submit(reader, {half(0, 0)}, 500)));
      g_is_short = true;
      std::vector<std::pair<std::uint64_t, Reader::Batch>> batches;
      const auto flow = reader.flow(20'000);
      for (std::uint64_t i = 0; i < 2'000; ++i) {
        const std::vector<Read> reads{half(i * 1'900, 0), half(i * 1'900 + 500, 500)};
        const std::uint64_t end = 2, size = 1'000;
        batches.emplace_back(i, reader.submit(reads, std::span(&end, 1), std::span(&size, 1), 1, flow)[0]);
        if (i % 3 == 0) batches.back().second->cancel();
        if (i % 7 == 0) batches.erase(batches.begin() + static_cast<long>(batches.size() / 2));
      }
      for (auto& [i, batch] : batches) {
        CHECK(finish(batch));
        const auto failure = batch->failure();
        if (failure.has_value()) {
          CHECK(failure->kind == FailureKind::kMemory || failure->kind == FailureKind::kClosed);
        } else {
          CHECK(std::memcmp(batch->take()[0].data(), kData.data() + i * 1'900, 1'000) == 0);
        }
        batch.reset();  // gives its room back
      }
      g_is_short = false;
      CHECK(finish(submit(reader, {half(77, 0)}, 500)));  // nothing of it stays
    }
  }
}
