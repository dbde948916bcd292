#include "model/device_room.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/cuda/row_formats.h"
#include "core/error.h"

namespace spb::model {
namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kAnyContext = int64_t{1} << 40;  // longer than all rings

int64_t mebibytes_up(int64_t bytes) { return (bytes + kMiB - 1) / kMiB; }

// Largest first.
constexpr DType kSmallFormats[] = {DType::kQ8_0, DType::kQ4_0};

int64_t slot_bytes(const TensorSlot& slot, std::optional<DType> format) {
  const ConstTensorView& view = *slot.view;
  const int64_t elements = view.shape().elements();
  const bool codes = slot.use == TensorUse::kCodes || slot.use == TensorUse::kScales ||
                     slot.use == TensorUse::kResidual;
  if (slot.use == TensorUse::kVector) return elements * static_cast<int64_t>(sizeof(float));
  if (format && !codes && slot.use != TensorUse::kSmallMatrix) {
    const bool whole = view.shape().last() % block_elements(*format) == 0;
    return row_bytes(whole ? *format : DType::kF16, view.shape().last()) * view.shape().rows();
  }
  const bool kept = codes || cuda::readable_on_device(view.dtype());
  return kept ? view.bytes() : elements * static_cast<int64_t>(sizeof(float));
}

std::string join(const std::vector<std::string>& ways) {
  return fmt::format("{}", fmt::join(ways, ", or "));
}

// Rings and caches are reserved whole.
int64_t whole_state_bytes(const ModelConfig& config, const StateOptions& options, int64_t context) {
  const StateBytes bytes = state_bytes(config, options, context);
  return bytes.recurrent + state_bytes(config, options, kAnyContext).window + bytes.full;
}

// What is recommended leaves room for the activations of a step, estimated with a margin.
int64_t recommended_bytes(const ModelConfig& config, const StateOptions& options, int64_t context) {
  return whole_state_bytes(config, options, context) + 2 * step_bytes(config, options.max_chunk);
}

// Those of the small formats in which the weights would take less than now: "q8_0 or q4_0".
std::string smaller_formats(const ModelConfig& config, const ModelWeights& weights) {
  const int64_t now = device_weight_bytes(config, weights);
  std::vector<std::string_view> names;
  for (const DType format : kSmallFormats) {
    if (device_weight_bytes(config, weights, format) < now) names.push_back(name(format));
  }
  return fmt::format("{}", fmt::join(names, " or "));
}

// What a user could ask for instead.
std::string ways_to_fit(const ModelConfig& config, const ModelWeights& weights,
                        const StateOptions& options, int64_t context, int64_t free) {
  std::vector<std::string> ways;
  const int64_t position = state_bytes(config, options, 1).full;
  const int64_t left = free - recommended_bytes(config, options, 0);
  if (position > 0 && left >= position) {
    ways.push_back(fmt::format("a context of at most {} tokens fits (--context)", left / position));
  }
  StateOptions smaller = options;
  while (smaller.max_chunk > 1 && recommended_bytes(config, smaller, context) > free) {
    smaller.max_chunk /= 2;
  }
  if (recommended_bytes(config, smaller, context) <= free) {
    ways.push_back(fmt::format("steps of {} tokens fit (--chunk)", smaller.max_chunk));
  }
  StateOptions codes = options;
  codes.cache_dtype = DType::kI8;
  if (cache_dtype(config, options) != DType::kI8 &&
      recommended_bytes(config, codes, context) <= free) {
    ways.push_back("a cache of 8-bit codes fits (--cache-type i8)");
  }
  const std::string formats = smaller_formats(config, weights);
  if (!formats.empty()) {
    ways.push_back(fmt::format("weights as {} leave more room (spb quantize)", formats));
  }
  if (ways.empty()) ways.push_back("a smaller model is needed");
  return join(ways);
}

}  // namespace

DeviceRoom room_on(const Device& device) {
  return {device, cuda::device_info(device.index).free_bytes};
}

int64_t device_weight_bytes(const ModelConfig& config, const ModelWeights& weights,
                            std::optional<DType> format) {
  ModelWeights views = weights;
  int64_t total = 0;
  for_each_tensor(config, views, [&](const TensorSlot& slot) {
    if (!slot.view->defined()) return;
    const bool twice = slot.use == TensorUse::kEmbedding && config.tied_embeddings;
    total += slot_bytes(slot, format) * (twice ? 2 : 1);
  });
  return total;
}

void check_weights_fit(const ModelConfig& config, const ModelWeights& weights,
                       const DeviceRoom& room) {
  const int64_t bytes = device_weight_bytes(config, weights);
  if (bytes <= room.free_bytes) return;
  std::vector<std::string> ways;
  int64_t smallest = bytes;
  for (const DType format : kSmallFormats) {
    const int64_t size = device_weight_bytes(config, weights, format);
    smallest = std::min(smallest, size);
    if (size <= room.free_bytes) {
      ways.push_back(fmt::format("as {} they would take {} MiB (spb quantize)", name(format),
                                 mebibytes_up(size)));
    }
  }
  if (ways.empty())
    ways.push_back(fmt::format("the smallest format would take {} MiB", mebibytes_up(smallest)));
  fail(ErrorKind::kSystem, "model: {}: weights of {} MiB do not fit into {} MiB that are free; {}",
       to_string(room.device), mebibytes_up(bytes), room.free_bytes / kMiB, join(ways));
}

int64_t step_bytes(const ModelConfig& config, int64_t rows) {
  constexpr int64_t kActivation = 2;  // bf16
  const int64_t heads = 2 * (config.query_size() + config.kv_size());
  const int64_t values = 3 * config.hidden_size + std::max(heads, 2 * config.intermediate_size);
  return rows * kActivation * values;
}

void check_state_fits(const ModelConfig& config, const ModelWeights& weights,
                      const StateOptions& options, int64_t context, const DeviceRoom& room) {
  const int64_t bytes = whole_state_bytes(config, options, context);
  if (bytes <= room.free_bytes) return;
  const std::string length = config.layers_with(Mixer::kFull) > 0
                                 ? fmt::format("a context of {} tokens and ", context)
                                 : "";
  fail(ErrorKind::kSystem, "state: {}: {}steps of {} need {} MiB, but {} MiB are free; {}",
       to_string(room.device), length, options.max_chunk, mebibytes_up(bytes),
       room.free_bytes / kMiB, ways_to_fit(config, weights, options, context, room.free_bytes));
}

}  // namespace spb::model
