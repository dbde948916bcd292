#include "spike/spike_matmul/spike_weight.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/tensor_check.h"
#include "spike/spike_matmul/spike_weight_impl.h"

namespace spb::spike {
namespace {

void check_source(const SpikeWeightSource& source) {
  const Shape& shape = source.codes.shape();
  check(source.codes.defined() && shape.rank() == 2,
        "spike_matmul: codes: expected a matrix [N, K], got {}",
        source.codes.defined() ? shape.to_string() : "nothing");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check(shape[0] >= 1 && shape[0] <= kMost && shape[1] >= 1 && shape[1] <= kMaxChannels,
        "spike_matmul: codes: expected 1 to {} rows and 1 to {} columns, got {}", kMost,
        kMaxChannels, shape);
  check(shape[1] % kScaleGroup == 0,
        "spike_matmul: codes: expected columns divisible by the group size {}, got {}", kScaleGroup,
        shape[1]);
  check_tensor("spike_matmul", "codes", source.codes, DType::kI8, shape);
  check_tensor("spike_matmul", "scales", source.scales, DType::kF32,
               Shape{shape[0], shape[1] / kScaleGroup});
}

void check_scales(const ConstTensorView& scales) {
  for (int64_t n = 0; n < scales.shape()[0]; ++n) {
    const float* row = scales.row_as<float>(n);
    for (int64_t g = 0; g < scales.shape()[1]; ++g) {
      check_data(std::isfinite(row[g]),
                 "spike_matmul: scales: row {}, group {}: expected a finite number, got {}", n, g,
                 row[g]);
    }
  }
}

void check_residual(const SpikeWeightSource& source) {
  const CodeExcess* before = nullptr;
  for (const CodeExcess& e : source.residual) {
    check(e.row >= 0 && e.row < source.codes.shape()[0] && e.column >= 0 &&
              e.column < source.codes.shape()[1],
          "spike_matmul: residual: expected places inside {}, got row {}, column {}",
          source.codes.shape(), e.row, e.column);
    check(before == nullptr || before->row < e.row ||
              (before->row == e.row && before->column < e.column),
          "spike_matmul: residual: expected ascending rows and columns, each place once, got row "
          "{}, column {} out of order",
          e.row, e.column);
    const int64_t code = int64_t{e.excess} + source.codes.row_as<int8_t>(e.row)[e.column];
    check_data(std::abs(code) <= kMaxCode,
               "spike_matmul: residual: row {}, column {}: expected |code| up to {}, got {}", e.row,
               e.column, kMaxCode, code);
    before = &e;
  }
}

// One row of the source into its lane of every cell of a block.
void pack_cell_row(const SpikeWeightSource& source, int64_t n, std::byte* cell) {
  const auto* codes = source.codes.row_as<int8_t>(n);
  const auto* scales = source.scales.row_as<float>(n);
  const int64_t lane = n % kBlockRows;
  for (int64_t g = 0; g < source.scales.shape()[1]; ++g, cell += kCellBytes) {
    for (int64_t j = 0; j < kCellColumns / 4; ++j) {
      std::memcpy(cell + 64 * j + 4 * lane, codes + g * kCellColumns + 4 * j, 4);
    }
    std::memcpy(cell + kCellCodeBytes + 4 * lane, scales + g, 4);
  }
}

void pack_cells(Context& context, const SpikeWeightSource& source, SpikeWeight::Impl& impl) {
  const int64_t block_bytes = impl.groups() * kCellBytes;
  impl.cells = Buffer(impl.blocks() * block_bytes);
  context.pool().parallel_for(impl.rows, kBlockRows, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      pack_cell_row(source, n, impl.cells.data() + n / kBlockRows * block_bytes);
    }
  });
}

// Rows that do not exist keep byte 0, which stands for code -128, and scale 0.
void pack_band_row(const SpikeWeightSource& source, int64_t n, std::byte* group) {
  const auto* codes = source.codes.row_as<int8_t>(n);
  const auto* scales = source.scales.row_as<float>(n);
  const int64_t lane = n % kBandRows;
  for (int64_t g = 0; g < source.scales.shape()[1]; ++g, group += kBandGroupBytes) {
    for (int64_t c = 0; c < kScaleGroup; ++c) {
      group[kBandRows * c + lane] = static_cast<std::byte>(codes[g * kScaleGroup + c] + 128);
    }
    std::memcpy(group + kBandCodeBytes + 4 * lane, scales + g, 4);
  }
}

void pack_bands(Context& context, const SpikeWeightSource& source, SpikeWeight::Impl& impl) {
  const int64_t band_bytes = impl.groups() * kBandGroupBytes;
  impl.bands = Buffer(impl.band_count() * band_bytes);
  context.pool().parallel_for(impl.rows, kBandRows, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      pack_band_row(source, n, impl.bands.data() + n / kBandRows * band_bytes);
    }
  });
}

void sort_residual(const SpikeWeightSource& source, SpikeWeight::Impl& impl) {
  if (source.residual.empty()) return;
  const auto cell_of = [&](const CodeExcess& e) {
    return static_cast<size_t>(e.row / kBlockRows * impl.groups() + e.column / kScaleGroup);
  };
  impl.excess_begin.assign(static_cast<size_t>(impl.blocks() * impl.groups()) + 1, 0);
  for (const CodeExcess& e : source.residual) ++impl.excess_begin[cell_of(e) + 1];
  for (size_t i = 1; i < impl.excess_begin.size(); ++i) {
    impl.excess_begin[i] += impl.excess_begin[i - 1];
  }
  std::vector<int64_t> next(impl.excess_begin.begin(), impl.excess_begin.end() - 1);
  impl.excess.resize(source.residual.size());
  for (const CodeExcess& e : source.residual) {
    impl.excess[static_cast<size_t>(next[cell_of(e)]++)] = {
        static_cast<uint8_t>(e.row % kBlockRows), static_cast<uint8_t>(e.column % kScaleGroup),
        e.excess};
    impl.largest_excess = std::max(impl.largest_excess, std::abs(e.excess));
  }
}

}  // namespace

SpikeWeight::SpikeWeight() = default;
SpikeWeight::~SpikeWeight() = default;
SpikeWeight::SpikeWeight(SpikeWeight&&) noexcept = default;
SpikeWeight& SpikeWeight::operator=(SpikeWeight&&) noexcept = default;

int64_t SpikeWeight::rows() const { return impl_->rows; }
int64_t SpikeWeight::columns() const { return impl_->columns; }
int64_t SpikeWeight::residual_codes() const { return static_cast<int64_t>(impl_->excess.size()); }
bool SpikeWeight::channel_major() const { return impl_->bands.bytes() > 0; }
int64_t SpikeWeight::bytes() const {
  return impl_->cells.bytes() + static_cast<int64_t>(impl_->excess.size() * sizeof(CellExcess) +
                                                     impl_->excess_begin.size() * sizeof(int64_t));
}
int64_t SpikeWeight::channel_major_bytes() const { return impl_->bands.bytes(); }

SpikeWeight prepare_spike_weight(Context& context, const SpikeWeightSource& source,
                                 bool channel_major) {
  check_source(source);
  check_scales(source.scales);
  check_residual(source);
  SpikeWeight weight;
  weight.impl_ = std::make_unique<SpikeWeight::Impl>();
  SpikeWeight::Impl& impl = *weight.impl_;
  impl.rows = source.codes.shape()[0];
  impl.columns = source.codes.shape()[1];
  pack_cells(context, source, impl);
  if (channel_major) pack_bands(context, source, impl);
  sort_residual(source, impl);
  return weight;
}

}  // namespace spb::spike
