// Errors: one exception type for the whole library.
//
// Message form: "where: what: expected X, got Y" on one line. Library code never aborts or exits;
// only the command line turns an Error into an exit status.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace spb {

enum class ErrorKind {
  kUsage,        // a wrong argument or option: exit status 2
  kData,         // a file or request whose content is malformed or unsupported: exit status 1
  kSystem,       // the operating system refused (no such file, disk full, out of memory): status 1
  kInterrupted,  // the user asked to stop: status 130
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// Replaces control and direction characters and malformed UTF-8 by visible escapes and shortens
// long text, so that names read from a file can be quoted in a one-line message.
std::string printable(std::string_view text, size_t max_bytes = 120);

// "operation: <errno text>" as a kSystem error; reads errno.
[[noreturn]] void throw_system_error(const std::string& operation);

template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

// Throws a kUsage error unless `condition` holds. Used by operators to check their arguments.
template <typename... Args>
void check(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]] {
    throw Error(ErrorKind::kUsage, fmt::format(format, std::forward<Args>(args)...));
  }
}

// Throws a kData error unless `condition` holds. Used by readers of files and requests.
template <typename... Args>
void check_data(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]] {
    throw Error(ErrorKind::kData, fmt::format(format, std::forward<Args>(args)...));
  }
}

}  // namespace spb
