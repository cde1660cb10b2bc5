// What Python's os module lacks for writing files.
#include <fcntl.h>
#include <nanobind/nanobind.h>

#include "gil.hpp"
#include "shufflestore/sys.hpp"

namespace shufflestore::bind {

namespace nb = nanobind;
using namespace nb::literals;

void bind_write(nb::module_& m) {
  m.def(
      "start_writing",
      [](int fd, off_t offset, off_t size) {
        const GilReleased nogil;
        // Advice: where it fails, fsync has the more to do. Without a flag to wait, it leaves errors to
        // fsync.
        sys().sync_file_range(fd, offset, size, SYNC_FILE_RANGE_WRITE);
      },
      "fd"_a, "offset"_a, "size"_a,
      "Have the system begin to put written bytes on the disk, so that fsync finds little left. Promises "
      "nothing.");
}

}  // namespace shufflestore::bind
