#include <cstring>
#include <thread>

#include "check.hpp"
#include "scene.hpp"
#include "shufflestore/error.hpp"

using namespace scene;

namespace {

const Bytes kData = noise(1 << 20);

struct Plan {
  std::vector<Read> reads;
  std::vector<std::uint64_t> ends;
  std::vector<std::uint64_t> sizes;
};

// `batches` batches of scattered reads, all with checksums.
Plan scattered(std::size_t batches, std::size_t reads_each, std::uint64_t seed) {
  Plan plan;
  for (std::size_t b = 0; b < batches; ++b) {
    std::uint64_t slot = 0;
    for (std::size_t i = 0; i < reads_each; ++i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      const std::uint64_t size = (seed >> 33) % 4097;
      const std::uint64_t offset = (seed >> 20) % (kData.size() - size);
      plan.reads.push_back(checked(copy_read(offset, slot, size), kData));
      slot += size;
    }
    plan.ends.push_back(plan.reads.size());
    plan.sizes.push_back(slot);
  }
  return plan;
}

bool is_right(const Reader::Batch& batch) {
  if (!finish(batch) || batch->failure().has_value()) return false;
  const auto out = batch->take();
  for (std::size_t i = 0; i < batch->read_count(); ++i) {
    const Read& read = batch->read(i);
    if (std::memcmp(out[0].data() + read.slot, kData.data() + read.offset, read.size) != 0) return false;
  }
  return true;
}

template <typename Change>
bool refused(Change&& change) {
  Reader reader("null", 1, 0);
  reader.add("/nothing", 100);
  Plan plan{.reads = {copy_read(0, 0, 10), copy_read(10, 10, 10)}, .ends = {1, 2}, .sizes = {10, 20}};
  change(plan);
  return check::throws<std::invalid_argument>([&] { reader.submit(plan.reads, plan.ends, plan.sizes, 1); });
}

}  // namespace

TEST(many_batches_in_flight_all_come_out_right) {
  const TempFile file(kData);
  for (const char* engine : kEngines) {
    for (const std::size_t threads : {1u, 2u, 7u}) {
      Reader reader(engine, threads, 0);
      reader.add(file.path(), kData.size());
      std::vector<Reader::Batch> flying;
      for (std::uint64_t round = 0; round < 6; ++round) {
        const Plan plan = scattered(8, 100, round + threads);
        for (auto& batch : reader.submit(plan.reads, plan.ends, plan.sizes, 1)) flying.push_back(batch);
      }
      for (const auto& batch : flying) CHECK(is_right(batch));
      CHECK(reader.counters().batches == 48 && reader.counters().reads == 4800);
    }
  }
}

TEST(many_threads_may_submit_and_wait) {
  const TempFile file(kData);
  Reader reader("mmap", 3, 0);
  reader.add(file.path(), kData.size());
  std::vector<std::thread> callers;
  std::atomic<int> right{0};
  for (std::uint64_t caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (std::uint64_t round = 0; round < 10; ++round) {
        const Plan plan = scattered(3, 50, caller * 100 + round);
        for (auto& batch : reader.submit(plan.reads, plan.ends, plan.sizes, 1)) right += is_right(batch);
        reader.add("/another", 5);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(right == 120);
}

TEST(a_wrong_checksum_is_reported_with_both_values_and_the_lowest_index_wins) {
  const TempFile file(kData);
  for (const char* engine : kEngines) {
    for (int round = 0; round < 20; ++round) {
      Reader reader(engine, 4, 0);
      reader.add(file.path(), kData.size());
      Plan plan = scattered(1, 200, 9);
      const std::uint32_t right = plan.reads[61].crc;
      for (const std::size_t bad : {61u, 62u, 150u, 199u}) plan.reads[bad].crc ^= 1;
      const auto batch = reader.submit(plan.reads, plan.ends, plan.sizes, 1)[0];
      CHECK(finish(batch));
      const auto failure = batch->failure();
      CHECK(failure->index == 61 && failure->kind == FailureKind::kChecksum);
      CHECK(failure->expected == (right ^ 1) && failure->found == right);
      CHECK(reader.counters().checksum_failures == 4);
      CHECK(check::throws<std::invalid_argument>([&] { batch->take(); }));
    }
  }
}

TEST(zeros_are_filled_in_without_a_read) {
  for (const char* engine : kEngines) {
    Reader reader(engine, 1, 0);
    Read zero = copy_read(0, 3, 5, 12345);  // the file is not looked at
    zero.op = kZero;
    std::memset(Buffer::allocate(10).data(), 0xFF, 10);
    const auto batch = submit(reader, {zero}, 10);
    CHECK(finish(batch) && !batch->failure().has_value());
    const auto out = batch->take();
    for (int i = 3; i < 8; ++i) CHECK(out[0].data()[i] == 0);
    CHECK(reader.counters().bytes_read == 0 && reader.counters().bytes_delivered == 10);
  }
}

TEST(a_batch_without_reads_or_outputs_is_done) {
  Reader reader("mmap", 1, 0);
  const std::vector<std::uint64_t> ends = {0, 0};
  const std::vector<std::uint64_t> sizes = {7, 0};
  const auto batches = reader.submit({}, ends, sizes, 1);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(finish(batches[i]) && batches[i]->take()[0].size() == sizes[i]);
    CHECK(check::throws<std::invalid_argument>([&] { batches[i]->take(); }));
  }
  CHECK(reader.submit({}, {}, {}, 3).empty());
}

TEST(bad_descriptors_are_refused_before_anything_is_queued) {
  CHECK(!refused([](Plan&) {}));
  CHECK(refused([](Plan& p) { p.reads[1].slot = 11; }));
  CHECK(refused([](Plan& p) { p.reads[1].slot = ~std::uint64_t{0}; }));
  CHECK(refused([](Plan& p) { p.reads[1].size = ~std::uint64_t{0}; }));
  CHECK(refused([](Plan& p) { p.reads[1].offset = ~std::uint64_t{0} - 3; }));
  CHECK(refused([](Plan& p) { p.reads[1].file = 1; }));
  CHECK(refused([](Plan& p) { p.reads[1].output = 1; }));
  CHECK(refused([](Plan& p) { p.reads[1].flags = 2; }));
  CHECK(refused([](Plan& p) { p.reads[1].op = 2; }));
  CHECK(refused([](Plan& p) { p.reads[1].op = 37; }));  // 40 bytes do not fit
  CHECK(refused([](Plan& p) { p.reads[1].op = 37, p.reads[1].size = 1, p.reads[1].slot = 0; }));
  CHECK(refused([](Plan& p) { p.reads[1].op = 21, p.reads[1].size = std::uint64_t{1} << 61; }));
  CHECK(refused([](Plan& p) { p.ends = {2, 1}; }));
  CHECK(refused([](Plan& p) { p.ends = {1, 3}; }));
  CHECK(refused([](Plan& p) { p.ends = {1, 1}; }));
  CHECK(refused([](Plan& p) { p.sizes = {10}; }));
}

TEST(a_cancelled_batch_ends_as_closed_and_later_ones_go_on) {
  const TempFile file(kData);
  for (int round = 0; round < 50; ++round) {
    Reader reader("mmap", 2, 0);
    reader.add(file.path(), kData.size());
    const Plan plan = scattered(6, 100, static_cast<std::uint64_t>(round));
    const auto batches = reader.submit(plan.reads, plan.ends, plan.sizes, 1);
    batches[3]->cancel();
    batches[3]->cancel();
    CHECK(finish(batches[3]));
    if (batches[3]->failure().has_value()) CHECK(batches[3]->failure()->kind == FailureKind::kClosed);
    for (const std::size_t other : {0u, 1u, 2u, 4u, 5u}) CHECK(is_right(batches[other]));
  }
}

TEST(close_with_reads_in_flight_ends_them_and_refuses_more) {
  const TempFile file(kData);
  for (int round = 0; round < 50; ++round) {
    for (const char* engine : kEngines) {
      auto reader = std::make_unique<Reader>(engine, 3, 0);
      reader->add(file.path(), kData.size());
      const Plan plan = scattered(20, 100, static_cast<std::uint64_t>(round));
      const auto batches = reader->submit(plan.reads, plan.ends, plan.sizes, 1);
      std::thread other([&] { reader->close(); });
      reader->close();
      for (const auto& batch : batches) {
        CHECK(batch->is_done());
        if (batch->failure().has_value()) CHECK(batch->failure()->kind == FailureKind::kClosed);
      }
      other.join();
      CHECK(check::throws<std::invalid_argument>([&] { submit(*reader, {}, 0); }));
      reader.reset();
      CHECK(finish(batches.back()));  // outlives its reader
    }
  }
}

TEST(close_ends_batches_that_wait_for_room_in_several_flows) {
  const Bytes data = noise(1'000'000);
  const TempFile file(data);
  for (const char* engine : kEngines) {
    Reader reader(engine, 2, 0);
    reader.add(file.path(), data.size());
    const std::uint64_t end = 1, size = 1'000;
    const std::vector<Read> read{copy_read(0, 0, size)};
    std::vector<Reader::Batch> batches;
    for (int i = 0; i < 5; ++i) {
      const auto flow =
          reader.flow(2'500);  // two of its batches start, the others wait until those are taken
      for (int j = 0; j < 7; ++j) {
        batches.push_back(reader.submit(read, std::span(&end, 1), std::span(&size, 1), 1, flow)[0]);
      }
    }
    reader.close();
    int closed = 0;
    for (const auto& batch : batches) {
      CHECK(finish(batch));
      const auto failure = batch->failure();
      if (failure.has_value()) CHECK(failure->kind == FailureKind::kClosed);
      closed += failure.has_value() ? 1 : 0;
    }
    CHECK(closed >= 5 * 5);  // all that waited for room
  }
}

TEST(an_engine_that_nobody_has_is_refused_by_name) {
  CHECK(check::throws<std::invalid_argument>([] { Reader("warp", 1, 0); }));
  CHECK(check::throws<std::invalid_argument>([] { Reader("mmap", 0, 0); }));
}
