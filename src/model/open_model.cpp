#include "model/open_model.h"

#include <filesystem>

#include "core/error.h"
#include "io/checkpoint.h"
#include "model/config_gguf.h"
#include "model/config_hugging_face.h"

namespace spb::model {
namespace {

void check_dtype(const TensorSlot& slot, const io::TensorEntry& entry) {
  const DType dtype = entry.view.dtype();
  const bool ok =
      slot.use == TensorUse::kVector ? is_float(dtype) : is_float(dtype) || !is_plain(dtype);
  check_data(ok, "{}: tensor '{}': expected a float{} type, got {}", entry.file,
             printable(entry.name), slot.use == TensorUse::kVector ? "" : " or block",
             spb::name(dtype));
}

}  // namespace

OpenModel open_model(const std::string& path) {
  OpenModel found;
  if (std::filesystem::is_directory(path)) {
    found.source = io::open_checkpoint_folder(path);
    HuggingFaceConfig read = config_from_hugging_face(path, *found.source);
    found.config = std::move(read.config);
    found.naming = read.naming;
  } else {
    const std::shared_ptr<const io::GgufFile> file = io::GgufFile::open(path);
    found.config = config_from_gguf(*file);
    found.metadata = &file->metadata();
    found.source = file;
  }
  return found;
}

ModelWeights bind_weights(const ModelConfig& config, const io::TensorSource& source,
                          Naming naming) {
  ModelWeights weights;
  for_each_tensor(config, weights, [&](const TensorSlot& slot) {
    const io::TensorEntry& entry = source.at(tensor_name(slot, naming));
    check_data(entry.view.shape() == slot.shape, "{}: tensor '{}': expected shape {}, got {}",
               entry.file, printable(entry.name), slot.shape.to_string(),
               entry.view.shape().to_string());
    check_dtype(slot, entry);
    *slot.view = entry.view;
  });
  return weights;
}

}  // namespace spb::model
