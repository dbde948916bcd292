#include "golden/golden_recipe.h"

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>

#include "core/error.h"
#include "core/half.h"
#include "core/rng.h"
#include "core/test_source.h"
#include "io/checkpoint.h"

namespace spb::golden {
namespace {

std::filesystem::path folder_of(const std::string& folder) {
  return std::filesystem::path(test::source_root()) / "tests" / "golden" / folder;
}

std::string file_of(const std::string& folder, const std::string& name) {
  return (folder_of(folder) / name).string();
}

uint64_t fnv1a(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return hash;
}

float widen(ConstTensorView matrix, int64_t row, int64_t column) {
  if (matrix.dtype() == DType::kF32) return matrix.row_as<float>(row)[column];
  return to_float(matrix.row_as<bf16>(row)[column]);
}

double edited(const std::vector<RecipeEdit>& edits, int64_t index, double value) {
  for (const RecipeEdit& edit : edits) {
    if (index < edit.first || index >= edit.first + edit.count) continue;
    if (edit.kind == "times") {
      value *= edit.number;
    } else if (edit.kind == "set") {
      value = edit.number;
    } else {
      value = std::nearbyint(value / edit.number) * edit.number;
    }
  }
  return value;
}

const io::Json& find_run(const io::Json& runs, const std::string& tensor) {
  for (const io::Json& run : runs) {
    if (run.at("tensor") == tensor) return run;
  }
  fail(ErrorKind::kUsage, "golden case: run: expected a known one, got '{}'", tensor);
}

}  // namespace

double Expected::largest() const {
  double largest = 0;
  for (int64_t i = 0; i < logits.shape().elements(); ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(logits.as<float>()[i])));
  }
  return largest;
}

Expected Case::expected(const std::string& tensor) const {
  const io::Json json = io::read_json_file(file_of(folder, name + ".json"));
  Expected found;
  find_run(json.at("runs"), tensor).at("positions").get_to(found.positions);
  const auto source = io::open_safetensors(file_of(folder, name + ".safetensors"));
  const ConstTensorView stored = source->at(tensor).view;
  found.logits = Tensor(DType::kF32, stored.shape());
  for (int64_t row = 0; row < stored.shape()[0]; ++row) {
    for (int64_t column = 0; column < stored.shape()[1]; ++column) {
      found.logits.view().row_as<float>(row)[column] = widen(stored, row, column);
    }
  }
  return found;
}

Tensor Case::stored(const std::string& tensor) const {
  const auto source = io::open_safetensors(file_of(folder, name + ".safetensors"));
  const ConstTensorView view = source->at(tensor).view;
  Tensor copy(view.dtype(), view.shape());
  std::memcpy(copy.view().data(), view.data(), static_cast<size_t>(view.bytes()));
  return copy;
}

std::vector<std::string> case_names(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder_of(folder))) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

Case read_case(const std::string& name, const std::string& folder) {
  const io::Json json = io::read_json_file(file_of(folder, name + ".json"));
  Case found{folder, name, json.at("config"), {}, {}, json.at("prefill").get<int64_t>()};
  json.at("tokens").get_to(found.tokens);
  for (const io::Json& row : json.at("tensors")) {
    const auto sizes = row.at(1).get<std::vector<int64_t>>();
    TensorRecipe recipe{row.at(0), Shape(sizes), row.at(2), row.at(3)};
    for (const io::Json& edit : row.size() > 4 ? row.at(4) : io::Json::array()) {
      recipe.edits.push_back({edit.at(0), edit.at(1), edit.at(2), edit.at(3)});
    }
    found.tensors.push_back(std::move(recipe));
  }
  return found;
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "spb_golden_XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw_system_error("cannot make a temporary folder");
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Tensor make_tensor(const TensorRecipe& recipe, DType dtype) {
  Tensor tensor(dtype, recipe.shape);
  Rng rng(fnv1a(recipe.name));
  for (int64_t i = 0; i < recipe.shape.elements(); ++i) {
    const double drawn = (2.0 * rng.uniform() - 1.0) * recipe.scale + recipe.offset;
    const double value = edited(recipe.edits, i, drawn);
    if (dtype == DType::kF32) {
      tensor.as<float>()[i] = static_cast<float>(value);
    } else {
      tensor.as<bf16>()[i] = to_bf16(static_cast<float>(value));
    }
  }
  return tensor;
}

void write_config(const Case& model, DType dtype, const io::Json& extra,
                  const std::string& folder) {
  io::Json config = model.config;
  config["torch_dtype"] = dtype == DType::kF32 ? "float32" : "bfloat16";
  config.update(extra);
  std::ofstream(std::filesystem::path(folder) / "config.json") << config.dump(2) << '\n';
}

void write_weights(const Case& model, DType dtype, const std::string& folder) {
  std::vector<Tensor> tensors;
  std::vector<io::TensorEntry> entries;
  for (const TensorRecipe& recipe : model.tensors) {
    tensors.push_back(make_tensor(recipe, dtype));
    entries.push_back({recipe.name, std::as_const(tensors.back()).view(), {}});
  }
  io::write_safetensors((std::filesystem::path(folder) / "model.safetensors").string(), entries);
}

}  // namespace spb::golden
