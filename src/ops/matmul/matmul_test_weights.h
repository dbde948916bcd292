// Random weights of every format for the tests of matmul. Not part of the library.
#pragma once

#include <cstring>
#include <vector>

#include "core/block_formats.h"
#include "core/rng.h"
#include "core/tensor_view.h"

namespace spb::ops {

inline constexpr DType kWeightDTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                          DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                          DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

// Rows of random blocks. K-blocks cannot be written by quantize_row: their codes and 6-bit scales
// are random bytes, their f16 scales are set.
class Weights {
 public:
  Weights(Rng& rng, DType dtype, int64_t rows, int64_t columns, float scale = 1.0f,
          int64_t misalignment = 0)
      : dtype_(dtype),
        shape_{rows, columns},
        misalignment_(misalignment),
        bytes_(static_cast<size_t>(row_bytes(dtype, columns) * rows + misalignment)) {
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t n = 0; n < rows; ++n) {
      auto* out =
          reinterpret_cast<uint8_t*>(bytes_.data()) + misalignment + n * row_bytes(dtype, columns);
      if (can_quantize(dtype)) {
        for (float& v : row) v = scale * rng.normal();
        quantize_row(dtype, row.data(), out, columns);
      } else {
        random_blocks(rng, out, columns, scale);
      }
    }
  }

  ConstTensorView view() const { return {bytes_.data() + misalignment_, dtype_, shape_}; }

 private:
  void random_blocks(Rng& rng, uint8_t* out, int64_t columns, float scale) const {
    const int64_t size = block_bytes(dtype_);
    for (int64_t b = 0; b < columns / block_elements(dtype_); ++b, out += size) {
      for (int64_t i = 0; i < size; ++i) out[i] = static_cast<uint8_t>(rng.next());
      const f16 d = to_f16(scale * rng.uniform(0.001f, 0.004f));
      const f16 dmin = to_f16(scale * rng.uniform(0.001f, 0.004f));
      std::memcpy(dtype_ == DType::kQ6_K ? out + 208 : out, &d, 2);
      if (dtype_ != DType::kQ6_K) std::memcpy(out + 2, &dmin, 2);
    }
  }

  DType dtype_;
  Shape shape_;
  int64_t misalignment_;
  std::vector<std::byte> bytes_;
};

}  // namespace spb::ops
