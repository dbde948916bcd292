#include "io/tensor_source.h"

namespace spb::io {

const TensorEntry* TensorSource::find(std::string_view name) const {
  const std::vector<TensorEntry>& entries = tensors();
  std::call_once(indexed_, [&] {
    index_.reserve(entries.size());
    for (size_t i = 0; i < entries.size(); ++i) index_.emplace(entries[i].name, i);
  });
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries[found->second];
}

const TensorEntry& TensorSource::at(std::string_view name) const {
  const TensorEntry* entry = find(name);
  check_data(entry != nullptr, "{}: tensor '{}': expected in the file, got {} other tensors",
             path(), printable(name), tensors().size());
  return *entry;
}

}  // namespace spb::io
