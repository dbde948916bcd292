#include "model/open_model.h"

#include <filesystem>

#include "core/error.h"
#include "io/checkpoint.h"
#include "model/config_gguf.h"
#include "model/config_hugging_face.h"

namespace spb::model {
namespace {

// What a tensor of a given use may be, in words and as a test.
std::string_view expected_dtype(TensorUse use) {
  switch (use) {
    case TensorUse::kVector:
    case TensorUse::kScales: return "a float type";
    case TensorUse::kCodes: return "i8, a float or a block type";
    case TensorUse::kResidual: return "i32";
    default: return "a float or block type";
  }
}

bool is_expected(TensorUse use, DType dtype) {
  const bool matrix = is_float(dtype) || !is_plain(dtype);
  switch (use) {
    case TensorUse::kVector:
    case TensorUse::kScales: return is_float(dtype);
    case TensorUse::kCodes: return matrix || dtype == DType::kI8;
    case TensorUse::kResidual: return dtype == DType::kI32;
    default: return matrix;
  }
}

void check_dtype(const TensorSlot& slot, const io::TensorEntry& entry) {
  check_data(is_expected(slot.use, entry.view.dtype()), "{}: tensor '{}': expected {}, got {}",
             entry.file, printable(entry.name), expected_dtype(slot.use),
             spb::name(entry.view.dtype()));
}

// Published scales are [out, groups, 1].
ConstTensorView without_trailing_one(const TensorSlot& slot, ConstTensorView view) {
  const Shape& shape = view.shape();
  if (slot.use != TensorUse::kScales || shape.rank() != 3 || shape[2] != 1) return view;
  return view.reshaped(Shape{shape[0], shape[1]});
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
    const std::string name = tensor_name(slot, naming);
    if (slot.optional && source.find(name) == nullptr) return;
    const io::TensorEntry& entry = source.at(name);
    const ConstTensorView view = without_trailing_one(slot, entry.view);
    const bool fits = slot.use == TensorUse::kResidual
                          ? view.shape().rank() == 2 && view.shape()[1] == slot.shape[1]
                          : view.shape() == slot.shape;
    check_data(fits, "{}: tensor '{}': expected shape {}, got {}", entry.file,
               printable(entry.name), slot.shape.to_string(), view.shape().to_string());
    check_dtype(slot, entry);
    *slot.view = view;
  });
  return weights;
}

}  // namespace spb::model
