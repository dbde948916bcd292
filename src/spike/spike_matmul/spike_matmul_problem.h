// What the tests and the bench of spike_matmul share: random weights and counts of any size, and a
// call of every path. Not part of the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/half.h"
#include "core/test_tensors.h"
#include "spike/spike_matmul/spike_matmul.h"

namespace spb::spike::test {

// Weights as their source, with the memory it points to.
struct Codes {
  Tensor codes;
  Tensor scales;
  std::vector<CodeExcess> residual;

  SpikeWeightSource source() const { return {codes, scales, residual}; }
};

inline Codes random_codes(Rng& rng, int64_t rows, int64_t columns) {
  Codes w{Tensor(DType::kI8, Shape{rows, columns}),
          Tensor(DType::kF32, Shape{rows, (columns + kScaleGroup - 1) / kScaleGroup}),
          {}};
  for (int64_t i = 0; i < rows * columns; ++i) {
    w.codes.as<int8_t>()[i] = static_cast<int8_t>(rng.below(256) - 128);
  }
  for (int64_t i = 0; i < w.scales.shape().elements(); ++i) {
    w.scales.as<float>()[i] = rng.uniform(0.0005f, 0.01f);
  }
  return w;
}

// Drives of bf16 numbers, of which a share are far larger than the others.
inline Tensor random_drives(Rng& rng, const Shape& shape, double outliers) {
  Tensor x(DType::kF32, shape);
  for (int64_t i = 0; i < shape.elements(); ++i) {
    const float size = rng.uniform() < outliers ? 512.0f : 1.0f;
    x.as<float>()[i] = size * to_float(to_bf16(rng.normal()));
  }
  return x;
}

// Replaces the residual: `count` codes up to `largest` in magnitude, the corners among them.
inline void add_residual(Rng& rng, Codes& w, int64_t count, int32_t largest) {
  const int64_t rows = w.codes.shape()[0];
  const int64_t columns = w.codes.shape()[1];
  std::vector<int64_t> places = {0, columns - 1, (rows - 1) * columns, rows * columns - 1};
  for (int64_t i = 0; i < count; ++i) places.push_back(rng.below(rows * columns));
  std::sort(places.begin(), places.end());
  places.erase(std::unique(places.begin(), places.end()), places.end());
  w.residual.clear();
  for (const int64_t place : places) {
    const auto code = static_cast<int32_t>(rng.below(2 * int64_t{largest} + 1) - largest);
    const int32_t core = std::clamp(code, -127, 127);
    w.codes.as<int8_t>()[place] = static_cast<int8_t>(core);
    if (code == core) continue;
    w.residual.push_back({static_cast<int32_t>(place / columns),
                          static_cast<int32_t>(place % columns), code - core});
  }
}

// Counts with the memory they point to.
struct Counts {
  Tensor core;
  Tensor thresholds;
  SpikeCounts view;
};

// Sets a count and keeps core, bursts and the list of active channels in step.
inline Counts make_counts(Rng& rng, const std::vector<std::vector<int32_t>>& counts) {
  const auto rows = static_cast<int64_t>(counts.size());
  const auto columns = static_cast<int64_t>(counts[0].size());
  Counts s{Tensor(DType::kI8, Shape{rows, columns}), Tensor(DType::kF32, Shape{rows}), {}};
  s.view.core = s.core;
  s.view.thresholds = s.thresholds;
  s.view.active_begin.push_back(0);
  for (int32_t i = 0; i < rows; ++i) {
    s.thresholds.as<float>()[i] = rng.uniform(0.01f, 2.0f);
    for (int32_t c = 0; c < columns; ++c) {
      const int32_t count = counts[static_cast<size_t>(i)][static_cast<size_t>(c)];
      const int32_t core = std::clamp(count, -kCoreLimit, kCoreLimit);
      s.core.as<int8_t>()[i * columns + c] = static_cast<int8_t>(core);
      if (count != core) s.view.bursts.push_back({i, c, count - core});
      if (count != 0) s.view.active.push_back(c);
    }
    s.view.active_begin.push_back(static_cast<int64_t>(s.view.active.size()));
  }
  return s;
}

// Counts as neurons fire: mostly small, a share of them silent.
inline std::vector<std::vector<int32_t>> random_counts(Rng& rng, int64_t rows, int64_t columns,
                                                       double silence) {
  std::vector<std::vector<int32_t>> counts(static_cast<size_t>(rows));
  for (auto& row : counts) {
    for (int64_t c = 0; c < columns; ++c) {
      const auto size = static_cast<int32_t>(1 + 4 * std::fabs(rng.normal()));
      const bool silent = rng.uniform() < silence;
      row.push_back(silent ? 0 : rng.uniform() < 0.5 ? size : -size);
    }
  }
  return counts;
}

}  // namespace spb::spike::test
