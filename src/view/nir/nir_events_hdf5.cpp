#include <hdf5.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <vector>

#include "core/error.h"
#include "view/nir/nir_events.h"

namespace spb::view {
namespace {

constexpr hsize_t kChunk = 1 << 14;  // events compressed together
constexpr unsigned kCompression = 4;

// An HDF5 handle that closes itself.
class Handle {
 public:
  Handle() = default;
  Handle(hid_t id, herr_t (*close)(hid_t), const std::string& path) : id_(id), close_(close) {
    if (id < 0) fail(ErrorKind::kSystem, "{}: writing HDF5 failed", path);
  }
  Handle(Handle&& other) noexcept { *this = std::move(other); }
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }

 private:
  hid_t id_ = -1;
  herr_t (*close_)(hid_t) = nullptr;
};

void check_done(herr_t status, const std::string& path) {
  if (status < 0) fail(ErrorKind::kSystem, "{}: writing HDF5 failed", path);
}

Handle make_group(hid_t parent, const std::string& name, const std::string& path) {
  return {H5Gcreate2(parent, name.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose, path};
}

template <typename T>
void set_number(hid_t object, const char* name, hid_t type, T value, const std::string& path) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, path);
  const Handle attribute(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                         path);
  check_done(H5Awrite(attribute, type, &value), path);
}

void set_type(hid_t object, const char* value, const std::string& path) {
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose, path);
  check_done(H5Tset_size(type, H5T_VARIABLE), path);
  check_done(H5Tset_cset(type, H5T_CSET_UTF8), path);
  set_number(object, "__type__", type, value, path);
}

// A dataset [1, events] that grows.
class Column {
 public:
  Column(hid_t parent, const char* name, hid_t type, const std::string& path) : type_(type) {
    const hsize_t size[2] = {1, 0}, most[2] = {1, H5S_UNLIMITED}, chunk[2] = {1, kChunk};
    const Handle space(H5Screate_simple(2, size, most), H5Sclose, path);
    const Handle settings(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, path);
    check_done(H5Pset_chunk(settings, 2, chunk), path);
    check_done(H5Pset_deflate(settings, kCompression), path);
    dataset_ = {H5Dcreate2(parent, name, type, space, H5P_DEFAULT, settings, H5P_DEFAULT), H5Dclose,
                path};
  }

  void append(const void* values, hsize_t count, const std::string& path) {
    const hsize_t start[2] = {0, size_}, added[2] = {1, count};
    size_ += count;
    const hsize_t whole[2] = {1, size_};
    check_done(H5Dset_extent(dataset_, whole), path);
    const Handle space(H5Dget_space(dataset_), H5Sclose, path);
    check_done(H5Sselect_hyperslab(space, H5S_SELECT_SET, start, nullptr, added, nullptr), path);
    const Handle memory(H5Screate_simple(2, added, nullptr), H5Sclose, path);
    check_done(H5Dwrite(dataset_, type_, memory, space, H5P_DEFAULT, values), path);
  }

 private:
  hid_t type_;
  Handle dataset_;
  hsize_t size_ = 0;
};

// The node of one layer and site.
struct Node {
  Node(hid_t nodes, const std::string& name, int64_t neurons, const std::string& path)
      : node(make_group(nodes, name, path)),
        observables(make_group(node, "observables", path)),
        events(make_group(observables, "spike_counts", path)),
        idx(events, "idx", H5T_NATIVE_INT64, path),
        time(events, "time", H5T_NATIVE_DOUBLE, path),
        value(events, "value", H5T_NATIVE_DOUBLE, path) {
    set_type(node, "NIRNodeData", path);
    set_type(events, "ValuedEventData", path);
    set_number(events, "n_neurons", H5T_NATIVE_INT64, neurons, path);
  }

  Handle node, observables, events;
  Column idx, time, value;
  int64_t tokens = 0;
};

}  // namespace

struct NirEventWriter::Impl {
  explicit Impl(const std::string& target) : path(target), partial(target + ".partial") {
    check_done(H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr), path);  // errors are ours to print
    file = {H5Fcreate(partial.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose, path};
    set_type(file, "NIRGraphData", path);
    nodes = make_group(file, "nodes", path);
  }

  std::string path;
  std::string partial;
  Handle file, nodes;
  std::map<std::pair<int64_t, std::string>, Node> sites;
  bool finished = false;
};

NirEventWriter::NirEventWriter(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}

NirEventWriter::~NirEventWriter() {
  const std::string partial = impl_->finished ? "" : impl_->partial;
  impl_.reset();
  std::error_code ignored;
  if (!partial.empty()) std::filesystem::remove(partial, ignored);
}

void NirEventWriter::write(const SpikeBlock& block, const spike::SpikeCounts& counts) {
  const int64_t rows = counts.core.shape()[0], channels = counts.core.shape()[1];
  const int64_t per_token = block.rows_per_token;
  const std::string name = fmt::format("layer_{}.{}", block.layer, block.site);
  Node& node = impl_->sites
                   .try_emplace({block.layer, block.site}, impl_->nodes, name, channels * per_token,
                                impl_->path)
                   .first->second;
  std::vector<int64_t> idx;
  std::vector<double> time, value;
  auto burst = counts.bursts.begin();
  for (int64_t m = 0; m < rows; ++m) {
    const int8_t* core = counts.core.row_as<int8_t>(m);
    for (int64_t c = 0; c < channels; ++c) {
      if (core[c] == 0) continue;
      const bool bursts = burst != counts.bursts.end() && burst->row == m && burst->channel == c;
      idx.push_back(m % per_token * channels + c);
      time.push_back(static_cast<double>(block.first_token + m / per_token));
      value.push_back(core[c] + (bursts ? burst++->excess : 0));
    }
  }
  node.tokens = std::max(node.tokens, block.first_token + rows / per_token);
  if (idx.empty()) return;
  node.idx.append(idx.data(), idx.size(), impl_->path);
  node.time.append(time.data(), idx.size(), impl_->path);
  node.value.append(value.data(), idx.size(), impl_->path);
}

void NirEventWriter::finish() {
  for (auto& [key, node] : impl_->sites) {
    set_number(node.events, "t_max", H5T_NATIVE_DOUBLE, static_cast<double>(node.tokens),
               impl_->path);
  }
  impl_->sites.clear();
  impl_->nodes = {};
  check_done(H5Fflush(impl_->file, H5F_SCOPE_GLOBAL), impl_->path);
  impl_->file = {};
  std::error_code error;
  std::filesystem::rename(impl_->partial, impl_->path, error);
  if (error) fail(ErrorKind::kSystem, "{}: {}", impl_->path, error.message());
  impl_->finished = true;
}

}  // namespace spb::view
