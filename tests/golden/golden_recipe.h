// Small random models whose logits another implementation has computed (tests/golden/models,
// and tests/golden/spiking for those whose projections take spikes).
//
// Weights are not stored: element i of the tensor called NAME is (2u - 1) * scale + offset, with u
// the (i + 1)-th uniform number of the Rng seeded by the FNV-1a hash of NAME, rounded to f32 and
// for bf16 models further to bf16. Edits change ranges of elements before the rounding. The Python
// twin is tools/make_golden/recipe.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "io/json.h"

namespace spb::golden {

// Elements first to first + count: multiplied by a number, replaced by it, or moved to the nearest
// multiple of it.
struct RecipeEdit {
  std::string kind;  // "times", "set", "grid"
  int64_t first = 0;
  int64_t count = 0;
  double number = 0;
};

struct TensorRecipe {
  std::string name;
  Shape shape;
  double scale = 0;
  double offset = 0;
  std::vector<RecipeEdit> edits = {};
};

// Logits of the tokens at `positions` under one set of conditions.
struct Expected {
  std::vector<int64_t> positions;
  Tensor logits;  // [positions, vocab] f32
  double largest() const;
};

struct Case {
  std::string folder;  // of tests/golden
  std::string name;
  io::Json config;  // a Hugging Face config.json without its dtype
  std::vector<TensorRecipe> tensors;
  std::vector<int32_t> tokens;
  int64_t prefill = 0;  // where prompts end in prefill-then-decode tests

  // "f32.default", "bf16.default", and for models with a window "f32.inclusive_extra" and
  // "f32.reference_generate"; see tools/make_golden/README.md.
  // Of spiking models: "f32.reference", "f32.report", "bf16.exact" and "bf16.reference".
  Expected expected(const std::string& tensor) const;
  // A matrix beside the logits, such as "counts.0.mixer_in"; i32 or f32.
  Tensor stored(const std::string& tensor) const;
  bool has_window() const { return config.at("model_type") == "gla_swa"; }
};

std::vector<std::string> case_names(const std::string& folder = "models");  // sorted
Case read_case(const std::string& name, const std::string& folder = "models");

// A folder of its own under the system's temporary directory, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string path() const { return path_.string(); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

Tensor make_tensor(const TensorRecipe& recipe, DType dtype);  // f32 or bf16

// config.json with `extra` merged into it, and model.safetensors.
void write_config(const Case& model, DType dtype, const io::Json& extra, const std::string& folder);
void write_weights(const Case& model, DType dtype, const std::string& folder);

}  // namespace spb::golden
