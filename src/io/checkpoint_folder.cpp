#include <algorithm>
#include <filesystem>
#include <set>
#include <unordered_set>
#include <utility>

#include "io/checkpoint.h"
#include "io/json.h"

namespace spb::io {
namespace {

namespace fs = std::filesystem;
using Open = std::unique_ptr<TensorSource> (*)(const std::string& path);

constexpr size_t kMaxShards = 4096;

// The tensors of several files under one roof.
class ShardedSource final : public TensorSource {
 public:
  explicit ShardedSource(std::string path) : path_(std::move(path)) {}

  const std::vector<TensorEntry>& tensors() const override { return tensors_; }
  const std::string& path() const override { return path_; }
  // Shards ignore tensors that are not theirs.
  void will_need(const TensorEntry& entry) const override {
    for (const auto& shard : shards_) shard->will_need(entry);
  }
  void drop(const TensorEntry& entry) const override {
    for (const auto& shard : shards_) shard->drop(entry);
  }

  void add(std::unique_ptr<TensorSource> shard) {
    for (const TensorEntry& entry : shard->tensors()) {
      check_data(names_.insert(entry.name).second,
                 "{}: tensor '{}': expected in one shard only, got it in another one too",
                 entry.file, printable(entry.name));
      tensors_.push_back(entry);
    }
    shards_.push_back(std::move(shard));
  }

 private:
  std::string path_;
  std::vector<std::unique_ptr<TensorSource>> shards_;
  std::vector<TensorEntry> tensors_;
  std::unordered_set<std::string> names_;
};

// A shard is a file of the same folder: a name from a stranger must not lead elsewhere.
void check_shard_name(const std::string& index, const std::string& shard) {
  const bool plain = !shard.empty() && shard != "." && shard != ".." && shard.size() <= 255 &&
                     shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  check_data(plain, "{}: weight_map: expected the name of a file in the same folder, got '{}'",
             index, printable(shard));
}

std::unique_ptr<TensorSource> open_index(const std::string& path, Open open) {
  JsonLimits limits;
  limits.max_depth = 16;
  limits.duplicates = DuplicateKeys::kRefuse;
  const Json index = read_json_file(path, limits);
  const Json* map = find_member(index, "weight_map");
  check_data(map != nullptr, "{}: expected the key 'weight_map', got none", path);
  std::set<std::string> shards;
  for (const auto& [tensor, value] : json_object(*map, path + ": weight_map").items()) {
    const std::string& shard =
        json_string(value, fmt::format("{}: weight_map: '{}'", path, printable(tensor)));
    check_shard_name(path, shard);
    shards.insert(shard);
  }
  check_data(!shards.empty() && shards.size() <= kMaxShards,
             "{}: weight_map: expected 1 to {} shards, got {}", path, kMaxShards, shards.size());

  auto source = std::make_unique<ShardedSource>(path);
  for (const std::string& shard : shards) {
    source->add(open((fs::path(path).parent_path() / shard).string()));
  }
  for (const auto& [tensor, value] : map->items()) {
    const auto& shard = value.get_ref<const std::string&>();
    const TensorEntry* entry = source->find(tensor);
    check_data(entry != nullptr && fs::path(entry->file).filename() == shard,
               "{}: weight_map: tensor '{}': expected in '{}', got it {}", path, printable(tensor),
               printable(shard), entry == nullptr ? "nowhere" : "in " + printable(entry->file));
  }
  return source;
}

std::unique_ptr<TensorSource> open_only_file(const std::string& folder) {
  std::vector<std::string> weights;
  std::vector<std::string> pickles;
  std::error_code error;
  for (fs::directory_iterator file(folder, error), end; !error && file != end;
       file.increment(error)) {
    const fs::path extension = file->path().extension();
    if (extension == ".safetensors") weights.push_back(file->path().string());
    if (extension == ".bin") pickles.push_back(file->path().string());
  }
  if (error) fail(ErrorKind::kSystem, "{}: listing the folder: {}", folder, error.message());
  if (weights.size() == 1) return open_safetensors(weights.front());
  if (weights.empty() && pickles.size() == 1) return open_torch_zip(pickles.front());
  fail(ErrorKind::kData,
       "{}: expected model.safetensors, pytorch_model.bin, the index of one of them, or a single "
       "*.safetensors or *.bin, got {} and {} of these",
       folder, weights.size(), pickles.size());
}

}  // namespace

std::unique_ptr<TensorSource> open_checkpoint_folder(const std::string& folder) {
  std::error_code error;
  const bool is_folder = fs::is_directory(folder, error);
  check_data(is_folder, "{}: expected a folder, got {}", folder,
             fs::exists(folder, error) ? "a file" : "nothing of this name");
  const auto file = [&](const char* name) { return (fs::path(folder) / name).string(); };
  const auto exists = [&](const char* name) { return fs::exists(file(name), error); };
  if (exists("model.safetensors.index.json")) {
    return open_index(file("model.safetensors.index.json"), open_safetensors);
  }
  if (exists("model.safetensors")) return open_safetensors(file("model.safetensors"));
  if (exists("pytorch_model.bin.index.json")) {
    return open_index(file("pytorch_model.bin.index.json"), open_torch_zip);
  }
  if (exists("pytorch_model.bin")) return open_torch_zip(file("pytorch_model.bin"));
  return open_only_file(folder);
}

}  // namespace spb::io
