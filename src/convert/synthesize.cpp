#include "convert/synthesize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/block_formats.h"
#include "core/rng.h"
#include "model/config_gguf.h"

namespace spb::convert {
namespace {

// Rows of random weights repeat after this many, so that generating costs less than writing.
constexpr int64_t kDistinctRows = 64;

uint64_t name_seed(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ull ^ seed;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

float vector_value(std::string_view role, Rng& rng) {
  if (role.find("norm") != std::string_view::npos) return 1.0f;
  // Gate biases: log-decays from slow to fast forgetting.
  if (role == "attn_gate_up.bias") return rng.uniform(-2.0f, 6.0f);
  return rng.uniform(-0.1f, 0.1f);
}

void fill_vector(std::string_view role, std::span<std::byte> out, Rng& rng) {
  auto* values = reinterpret_cast<float*>(out.data());
  for (size_t i = 0; i < out.size() / sizeof(float); ++i) values[i] = vector_value(role, rng);
}

void fill_matrix(Context& context, const Shape& shape, DType dtype, std::span<std::byte> out,
                 uint64_t seed) {
  const int64_t columns = shape.last();
  const int64_t stride = row_bytes(dtype, columns);
  const auto bound = static_cast<float>(std::sqrt(3.0 / static_cast<double>(columns)));
  const int64_t distinct = std::min(kDistinctRows, shape.rows());
  context.pool().parallel_for(distinct, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t i = begin; i < end; ++i) {
      Rng rng(seed + static_cast<uint64_t>(i) * 0x9e3779b9ull);
      for (float& x : row) x = rng.uniform(-bound, bound);
      quantize_row(dtype, row.data(), out.data() + i * stride, columns);
    }
  });
  // A fixed pseudo-random choice of the distinct rows, so that no two neighbours need be alike.
  context.pool().parallel_for(shape.rows() - distinct, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const auto pick = static_cast<int64_t>(Rng(seed ^ static_cast<uint64_t>(i)).below(distinct));
      std::memcpy(out.data() + (distinct + i) * stride, out.data() + pick * stride,
                  static_cast<size_t>(stride));
    }
  });
}

}  // namespace

void synthesize(Context& context, const model::ModelConfig& config,
                const SynthesizeOptions& options, const std::string& output,
                const ProgressFunction& progress) {
  model::check_config(config, config.name);
  io::GgufMetadata metadata;
  model::ModelConfig written = config;
  const std::string architecture =
      options.architecture.empty() ? config.architecture : options.architecture;
  // Random weights have no meaning that scaled RoPE could preserve.
  if (architecture != "spikingbrain") written.rope_scaling.reset();
  model::config_to_gguf(written, architecture, metadata);
  metadata.set("tokenizer.ggml.model", std::string("none"));

  const DType embedding =
      options.embedding_format.value_or(default_embedding_format(options.format));
  model::ModelWeights unused;
  std::vector<io::GgufTensorPlan> plans;
  model::for_each_tensor(written, unused, [&](const model::TensorSlot& slot) {
    const std::string name = model::tensor_name(slot, model::Naming::kGguf);
    const DType dtype = storage_dtype(slot, options.format, embedding);
    const uint64_t seed = name_seed(options.seed, name);
    plans.push_back({name, dtype, slot.shape, [&context, slot, dtype, seed](auto out) {
                       Rng rng(seed);
                       if (slot.use == model::TensorUse::kVector) {
                         fill_vector(slot.role, out, rng);
                       } else {
                         fill_matrix(context, slot.shape, dtype, out, seed);
                       }
                     }});
  });
  io::write_gguf(output, metadata, plans, progress);
}

}  // namespace spb::convert
