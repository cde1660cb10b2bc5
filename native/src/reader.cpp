#include "shufflestore/reader.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "shufflestore/fork.hpp"
#include "shufflestore/guard.hpp"
#include "shufflestore/validate.hpp"

namespace shufflestore {
namespace {

// Guarded by process_lock(). Leaked: readers may outlive static destructors.
std::vector<std::weak_ptr<ReaderState>>& registry() {
  static auto& states = *new std::vector<std::weak_ptr<ReaderState>>;
  return states;
}

// What a parent made is never destroyed in its child: there are no threads to join, and destroying a
// condition somebody waited for at the fork would wait for ever.
template <typename T, typename... Arguments>
std::shared_ptr<T> make_forgettable(Arguments&&... arguments) {
  const std::uint64_t generation = process_generation();
  return {new T(std::forward<Arguments>(arguments)...), [generation](T* made) {
            if (generation == process_generation()) delete made;
          }};
}

std::size_t checked_threads(std::size_t threads) {
  constexpr std::size_t kMost = 1024;
  if (threads >= 1 && threads <= kMost) return threads;
  throw std::invalid_argument("threads is " + std::to_string(threads) + ", not in [1, 1024]");
}

}  // namespace

struct ReaderState {
  ReaderState(const Engine& engine, std::size_t max_open_files, std::size_t threads)
      : files(engine.cut.access, max_open_files, threads), pool(engine, files, counters, threads) {}

  // False if a thread is still at work: then nothing that it uses may go.
  bool close(Pool::Patience patience = Pool::kForAsLongAsItTakes) noexcept {
    is_closed = true;
    if (!pool.close(patience)) return false;
    files.close_all();
    return true;
  }

  const std::uint64_t generation = process_generation();
  std::atomic<bool> is_closed{false};
  Counters counters;
  FileTable files;
  Pool pool;  // last: its threads end before the files close
};

Reader::Reader(std::string_view engine, std::size_t threads, std::size_t max_open_files)
    : engine_(find_engine(engine)),
      threads_(checked_threads(threads)),
      max_open_files_(max_open_files),
      state_(make_state()) {}

Reader::~Reader() {
  close();
}

std::shared_ptr<ReaderState> Reader::make_state() const {
  auto made = make_forgettable<ReaderState>(engine_, max_open_files_, threads_);
  const std::scoped_lock lock(process_lock());
  std::erase_if(registry(), [](const auto& state) { return state.expired(); });
  registry().push_back(made);
  return made;
}

std::shared_ptr<ReaderState> Reader::state() const {
  std::shared_ptr<ReaderState> inherited;
  {
    const std::scoped_lock lock(process_lock());
    if (state_->generation == process_generation()) return state_;
    inherited = state_;
  }
  std::shared_ptr<ReaderState> fresh = make_state();
  const FileList& files = inherited->files.files();
  for (std::size_t i = 0; i < files.count(); ++i) fresh->files.add(files[i].path, files[i].vouched_size);
  if (inherited->is_closed) fresh->close();
  {
    const std::scoped_lock lock(process_lock());
    if (state_->generation == process_generation()) return state_;
    state_ = fresh;
  }
  inherited->files.release_inherited();
  return fresh;
}

std::uint32_t Reader::add(std::string path, std::uint64_t size) {
  return state()->files.add(std::move(path), size);
}

// A lone batch should keep all threads busy; many small claims cost more than they bring.
std::size_t Reader::grain(std::span<const Read> reads) const noexcept {
  if (reads.empty()) return 1;
  std::uint64_t bytes = 0;
  for (const Read& read : reads) bytes += read.size;
  const std::uint64_t average = bytes / reads.size() + 1;
  const std::uint64_t by_bytes = engine_.cut.about_bytes / average;
  const std::uint64_t by_threads = reads.size() / (4 * threads_);
  return std::clamp<std::uint64_t>(std::min(by_bytes, by_threads),
                                   std::min<std::size_t>(4, engine_.cut.most_reads), engine_.cut.most_reads);
}

std::vector<Reader::Batch> Reader::submit(std::span<const Read> reads, std::span<const std::uint64_t> ends,
                                          std::span<const std::uint64_t> output_sizes,
                                          std::size_t outputs_per_batch, const std::shared_ptr<Flow>& flow) {
  const std::shared_ptr<ReaderState> state = this->state();
  if (flow != nullptr && flow->pool.lock().get() != &state->pool)
    throw std::invalid_argument("the flow is another reader's, or a parent's");
  // Checked where nobody else can change them any more.
  const auto owned = std::make_shared<const std::vector<Read>>(reads.begin(), reads.end());
  validate({.reads = *owned,
            .ends = ends,
            .output_sizes = output_sizes,
            .outputs_per_batch = outputs_per_batch,
            .file_count = state->files.files().count()});
  if (engine_.cut.access == Access::kMap) install_guard();
  std::vector<Batch> batches;
  batches.reserve(ends.size());
  std::size_t begin = 0;
  for (std::size_t i = 0; i < ends.size(); ++i) {
    const std::size_t end = ends[i];
    const auto sizes = output_sizes.subspan(i * outputs_per_batch, outputs_per_batch);
    const std::size_t claim = grain(std::span(*owned).subspan(begin, end - begin));
    batches.push_back(make_forgettable<Pending>(owned, begin, end, sizes, claim, flow));
    begin = end;
  }
  if (!state->pool.push(batches)) throw std::invalid_argument("the reader is closed");
  for (const Batch& batch : batches) {
    if (batch->read_count() == 0) batch->finish_empty();
  }
  return batches;
}

std::shared_ptr<Flow> Reader::flow(std::uint64_t limit) const {
  const std::shared_ptr<ReaderState> state = this->state();
  return make_forgettable<Flow>(std::shared_ptr<Pool>(state, &state->pool), limit);
}

void Reader::close() noexcept {
  std::shared_ptr<ReaderState> current;
  {
    const std::scoped_lock lock(process_lock());
    current = state_;
  }
  current->is_closed = true;
  if (current->generation == process_generation()) {
    current->close();
  } else {
    current->files.release_inherited();  // the threads of a parent are not ours to end
  }
}

Snapshot Reader::counters() const {
  const std::shared_ptr<ReaderState> state = this->state();
  const Counters& c = state->counters;
  return {.reads = c.reads.load(),
          .bytes_read = c.bytes_read.load(),
          .bytes_delivered = c.bytes_delivered.load(),
          .batches = c.batches.load(),
          .checksum_failures = c.checksum_failures.load(),
          .open_files = state->files.open_count()};
}

void close_all_readers() noexcept {
  std::vector<std::weak_ptr<ReaderState>> states;
  {
    const std::scoped_lock lock(process_lock());
    states.swap(registry());
  }
  constexpr std::chrono::milliseconds kPatience(500);  // of all together; what hangs then, hangs for long
  const auto end = std::chrono::steady_clock::now() + kPatience;
  for (const auto& state : states) {
    const std::shared_ptr<ReaderState> open = state.lock();
    if (open == nullptr || open->generation != process_generation()) continue;
    const auto left =
        std::max(end - std::chrono::steady_clock::now(), std::chrono::steady_clock::duration(0));
    if (!open->close(std::chrono::duration_cast<Pool::Patience>(left))) {
      new std::shared_ptr<ReaderState>(open);  // for its threads
    }
  }
}

}  // namespace shufflestore
