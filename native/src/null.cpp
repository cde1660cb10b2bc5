// The null engine: finishes every read without touching a byte, to measure everything around the reads.
#include "shufflestore/engine.hpp"

namespace shufflestore {

const Engine kNullEngine = {
    .name = "null",
    .cut = {.access = Access::kNothing, .most_reads = 64, .about_bytes = 128 << 10},
    .available = [] { return std::string(); },
    .open = [] { return std::make_unique<EngineState>(); },
    .execute = [](EngineState&, Worker&, Pending&, Pending::Range) {},
    .close = [](std::unique_ptr<EngineState>) noexcept {},
};

}  // namespace shufflestore
