#include "model/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/block_formats.h"
#include "core/error.h"
#include "core/rng.h"

namespace spb::model {
namespace {

constexpr float kDeviation = 0.02f;
// Of codes: the largest of 128 normal numbers is nearly always within 127.
constexpr float kCodeDeviation = 32.0f;
// Elements before the numbers repeat: whole blocks of every format, and no multiple of a width.
constexpr int64_t kPeriod = 256 * 4093;

// Memory that tensors of a use are cut from, all from the start.
class Storage {
 public:
  Storage(DType dtype, int64_t elements, const std::vector<float>& numbers)
      : dtype_(dtype), buffer_(row_bytes(dtype, (elements / kPeriod + 1) * kPeriod)) {
    const int64_t bytes = row_bytes(dtype, kPeriod);
    if (dtype == DType::kI8) {
      write_codes(numbers);
    } else {
      quantize_row(dtype, numbers.data(), buffer_.data(), kPeriod);
    }
    for (int64_t at = bytes; at < buffer_.bytes(); at += bytes) {
      std::memcpy(buffer_.data() + at, buffer_.data(), static_cast<size_t>(bytes));
    }
  }
  ConstTensorView cut(const Shape& shape) const { return {buffer_.data(), dtype_, shape}; }

 private:
  void write_codes(const std::vector<float>& numbers) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      const float code = std::nearbyint(numbers[i] * (kCodeDeviation / kDeviation));
      buffer_.as<int8_t>()[i] = static_cast<int8_t>(std::clamp(code, -127.0f, 127.0f));
    }
  }

  DType dtype_;
  Buffer buffer_;
};

struct Sizes {
  int64_t matrix = 1;
  int64_t small_matrix = 1;
  int64_t vector = 1;
  int64_t codes = 1;
  int64_t scales = 1;

  int64_t& of(TensorUse use) {
    if (use == TensorUse::kVector) return vector;
    if (use == TensorUse::kCodes) return codes;
    if (use == TensorUse::kScales) return scales;
    return use == TensorUse::kSmallMatrix ? small_matrix : matrix;
  }
};

bool is_norm(const TensorSlot& slot) {
  return slot.shape.rank() == 1 && slot.role.find("norm") != std::string_view::npos;
}

class RandomSource : public io::TensorSource {
 public:
  RandomSource(const ModelConfig& config, DType format, uint64_t seed) {
    Sizes sizes;
    ModelWeights shapes;
    for_each_tensor(config, shapes, [&](const TensorSlot& slot) {
      sizes.of(slot.use) = std::max(sizes.of(slot.use), slot.shape.elements());
    });
    Rng rng(seed);
    std::vector<float> numbers(static_cast<size_t>(kPeriod));
    for (float& x : numbers) x = kDeviation * rng.normal();
    matrices_ = std::make_unique<Storage>(format, sizes.matrix, numbers);
    small_ = std::make_unique<Storage>(DType::kBF16, sizes.small_matrix, numbers);
    if (config.spikes) codes_ = std::make_unique<Storage>(DType::kI8, sizes.codes, numbers);
    std::fill(numbers.begin(), numbers.end(), 1.0f);
    ones_ = std::make_unique<Storage>(DType::kF32, sizes.vector, numbers);
    std::fill(numbers.begin(), numbers.end(), 0.0f);
    zeros_ = std::make_unique<Storage>(DType::kF32, sizes.vector, numbers);
    if (!config.spikes) return;
    std::fill(numbers.begin(), numbers.end(), kDeviation / kCodeDeviation);
    scales_ = std::make_unique<Storage>(DType::kF32, sizes.scales, numbers);
  }

  // Undefined for what a model may lack.
  ConstTensorView view(const TensorSlot& slot) const {
    if (slot.optional) return {};
    if (slot.use == TensorUse::kCodes) return codes_->cut(slot.shape);
    if (slot.use == TensorUse::kScales) return scales_->cut(slot.shape);
    if (slot.use == TensorUse::kSmallMatrix) return small_->cut(slot.shape);
    if (slot.use == TensorUse::kVector) return (is_norm(slot) ? ones_ : zeros_)->cut(slot.shape);
    return matrices_->cut(slot.shape);
  }

  const std::vector<io::TensorEntry>& tensors() const override { return none_; }
  const std::string& path() const override { return path_; }

 private:
  std::vector<io::TensorEntry> none_;
  std::string path_ = "random weights";
  std::unique_ptr<Storage> matrices_, small_, codes_, scales_, ones_, zeros_;
};

}  // namespace

std::unique_ptr<Model> random_model(Context& context, ModelConfig config, DType format,
                                    uint64_t seed, const LoadOptions& options) {
  check(can_quantize(format), "random model: format: expected one that can be written, got {}",
        name(format));
  auto source = std::make_shared<RandomSource>(config, format, seed);
  ModelWeights weights;
  for_each_tensor(config, weights,
                  [&](const TensorSlot& slot) { *slot.view = source->view(slot); });
  return std::make_unique<Model>(context, std::move(config), std::move(weights), source, options);
}

}  // namespace spb::model
