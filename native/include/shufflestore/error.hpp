// Errors as data: the error number, the file, what was tried.
#pragma once

#include <string>
#include <system_error>
#include <utility>

namespace shufflestore {

// The system refused. Becomes OSError with errno and filename in Python.
class IoError : public std::system_error {
 public:
  IoError(int error, std::string path, const std::string& what)
      : std::system_error(error, std::generic_category(), what + " " + path), path_(std::move(path)) {}

  int error() const noexcept { return code().value(); }
  const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

}  // namespace shufflestore
