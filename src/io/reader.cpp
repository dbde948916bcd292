#include "io/reader.h"

namespace spb::io {

std::string_view Reader::take_line(std::string_view what) {
  item_ = position_;
  const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + position_,
                              bytes_.size() - position_);
  const size_t end = rest.find('\n');
  require(end != std::string_view::npos, "{}: expected a line, got the end of the file", what);
  position_ += end + 1;
  return rest.substr(0, end);
}

void Reader::throw_error(const std::string& message) const {
  const std::string where = context_.empty() ? "" : context_ + ": ";
  fail(ErrorKind::kData, "{}: byte {}: {}{}", file_, base_ + item_, where, message);
}

void Reader::throw_too_short(uint64_t count, std::string_view what) const {
  throw_error(
      fmt::format("{}: expected {} bytes, got {} (truncated file?)", what, count, remaining()));
}

}  // namespace spb::io
