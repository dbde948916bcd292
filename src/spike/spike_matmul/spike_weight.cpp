#include "spike/spike_matmul/spike_weight.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/tensor_check.h"
#include "spike/spike_matmul/spike_matmul_cuda.h"
#include "spike/spike_matmul/spike_weight_impl.h"

namespace spb::spike {
namespace {

int64_t groups_of(const SpikeWeightSource& source) {
  return (source.codes.shape()[1] + kScaleGroup - 1) / kScaleGroup;
}

void check_source(const SpikeWeightSource& source, bool short_last_group) {
  const Shape& shape = source.codes.shape();
  check(source.codes.defined() && shape.rank() == 2,
        "spike_matmul: codes: expected a matrix [N, K], got {}",
        source.codes.defined() ? shape.to_string() : "nothing");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  check(shape[0] >= 1 && shape[0] <= kMost && shape[1] >= 1 && shape[1] <= kMaxChannels,
        "spike_matmul: codes: expected 1 to {} rows and 1 to {} columns, got {}", kMost,
        kMaxChannels, shape);
  check(short_last_group || shape[1] % kScaleGroup == 0,
        "spike_matmul: codes: expected columns divisible by the group size {}, got {}", kScaleGroup,
        shape[1]);
  check_tensor("spike_matmul", "codes", source.codes, DType::kI8, shape);
  check_tensor("spike_matmul", "scales", source.scales, DType::kF32,
               Shape{shape[0], groups_of(source)});
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

// One row of the source into its lane of every cell of a block.
void pack_cell_row(const SpikeWeightSource& source, int64_t n, std::byte* cell) {
  const auto* codes = source.codes.row_as<int8_t>(n);
  const auto* scales = source.scales.row_as<float>(n);
  const int64_t lane = n % kBlockRows;
  for (int64_t g = 0; g < groups_of(source); ++g, cell += kCellBytes) {
    const int64_t first = g * kCellColumns;
    const int64_t columns = std::min(kCellColumns, source.codes.shape()[1] - first);
    for (int64_t c = 0; c < columns; c += 4) {
      std::memcpy(cell + 16 * c + 4 * lane, codes + first + c,
                  static_cast<size_t>(std::min<int64_t>(4, columns - c)));
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

// Codes of up to kTurnRows rows of one group, turned so that a channel's lie together. Rows and
// channels that do not exist get code 0.
constexpr int64_t kTurnRows = 64;

void turn_codes(const SpikeWeightSource& source, int64_t row, int64_t group, int64_t band_rows,
                std::byte* out) {
  int8_t codes[kTurnRows][kScaleGroup] = {};
  const int64_t first = group * kScaleGroup;
  const int64_t columns = std::min(kScaleGroup, source.codes.shape()[1] - first);
  const int64_t rows = std::min(kTurnRows, source.codes.shape()[0] - row);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(codes[r], source.codes.row_as<int8_t>(row + r) + first,
                static_cast<size_t>(columns));
  }
  for (int64_t c = 0; c < kScaleGroup; ++c) {
    for (int64_t r = 0; r < kTurnRows; ++r) {
      out[band_rows * c + r] = static_cast<std::byte>(codes[r][c] + 128);
    }
  }
}

// The longest bands that share the rows among the threads as evenly as the shortest do.
int64_t choose_band_rows(int64_t rows, int64_t threads) {
  const auto rows_of_busiest = [&](int64_t band_rows) {
    const int64_t bands = (rows + band_rows - 1) / band_rows;
    return (bands + threads - 1) / threads * band_rows;
  };
  int64_t best = kLongestBand;
  while (best > kShortestBand && rows_of_busiest(best) > rows_of_busiest(kShortestBand)) best /= 2;
  return best;
}

void pack_bands(Context& context, const SpikeWeightSource& source, SpikeWeight::Impl& impl) {
  impl.band_rows = choose_band_rows(impl.rows, context.pool().threads());
  impl.bands = Buffer(impl.band_count() * impl.band_bytes());
  const int64_t group_bytes = kBandGroupSlots * impl.band_rows;
  context.pool().parallel_for(
      impl.band_count() * impl.groups(), 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          std::byte* out = impl.bands.data() + i * group_bytes;
          const int64_t row = i / impl.groups() * impl.band_rows;
          const int64_t group = i % impl.groups();
          const int64_t rows = std::min(impl.band_rows, impl.rows - row);
          for (int64_t r = 0; r < rows; r += kTurnRows) {
            turn_codes(source, row + r, group, impl.band_rows, out + r);
          }
          auto* scales = reinterpret_cast<float*>(out + kBandChannelSlots * impl.band_rows);
          for (int64_t r = 0; r < rows; ++r) {
            scales[r] = source.scales.row_as<float>(row + r)[group];
          }
        }
      });
}

// Entries that hold an excess.
int64_t entries_of(const CodeExcess& e) {
  constexpr int64_t kMost = std::numeric_limits<int16_t>::max();
  return (std::abs(int64_t{e.excess}) + kMost - 1) / kMost;
}

void append_excess(const CodeExcess& e, CellExcess* entries) {
  constexpr int32_t kMost = std::numeric_limits<int16_t>::max();
  int32_t left = e.excess;
  for (int64_t i = entries_of(e); i > 0; --i, ++entries) {
    const int32_t part = std::clamp(left, -kMost, kMost);
    left -= part;
    *entries = {static_cast<uint8_t>(e.row % kBlockRows),
                static_cast<uint8_t>(e.column % kScaleGroup), static_cast<int16_t>(part)};
  }
}

// A counting sort by cell.
void sort_residual(const SpikeWeightSource& source, SpikeWeight::Impl& impl) {
  if (source.residual.empty()) return;
  const auto cell_of = [&](const CodeExcess& e) {
    return static_cast<size_t>(e.row / kBlockRows * impl.groups() + e.column / kScaleGroup);
  };
  std::vector<int64_t>& begin = impl.excess_begin;
  begin.assign(static_cast<size_t>(impl.blocks() * impl.groups()) + 1, 0);
  for (const CodeExcess& e : source.residual) begin[cell_of(e) + 1] += entries_of(e);
  for (size_t i = 1; i < begin.size(); ++i) begin[i] += begin[i - 1];
  impl.excess.resize(static_cast<size_t>(begin.back()));
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (const CodeExcess& e : source.residual) {
    int64_t& place = next[cell_of(e)];
    append_excess(e, impl.excess.data() + place);
    place += entries_of(e);
    impl.largest_excess = std::max(impl.largest_excess, std::abs(e.excess));
  }
  impl.residual_codes = static_cast<int64_t>(source.residual.size());
}

}  // namespace

void check_residual(ConstTensorView codes, std::span<const CodeExcess> residual, ErrorKind kind) {
  const Shape& shape = codes.shape();
  const CodeExcess* before = nullptr;
  for (const CodeExcess& e : residual) {
    if (e.row < 0 || e.row >= shape[0] || e.column < 0 || e.column >= shape[1]) {
      fail(kind, "residual: expected places inside {}, got row {}, column {}", shape, e.row,
           e.column);
    }
    const bool ascending = before == nullptr || before->row < e.row ||
                           (before->row == e.row && before->column < e.column);
    if (!ascending) {
      fail(kind,
           "residual: expected ascending rows and columns, each place once, got row {}, column {} "
           "out of order",
           e.row, e.column);
    }
    const int64_t code = int64_t{e.excess} + codes.row_as<int8_t>(e.row)[e.column];
    check_data(std::abs(code) <= kMaxCode,
               "residual: row {}, column {}: expected |code| up to {}, got {}", e.row, e.column,
               kMaxCode, code);
    before = &e;
  }
}

SpikeWeight::SpikeWeight() = default;
SpikeWeight::~SpikeWeight() = default;
SpikeWeight::SpikeWeight(SpikeWeight&&) noexcept = default;
SpikeWeight& SpikeWeight::operator=(SpikeWeight&&) noexcept = default;

int64_t SpikeWeight::rows() const { return impl_->rows; }
int64_t SpikeWeight::columns() const { return impl_->columns; }
int64_t SpikeWeight::residual_codes() const { return impl_->residual_codes; }
bool SpikeWeight::channel_major() const { return channel_major_bytes() > 0; }
int64_t SpikeWeight::bytes() const {
  const DeviceTiles& tiles = impl_->tiles;
  return impl_->cells.bytes() + tiles.codes.bytes() + tiles.scales.bytes() + tiles.digits.bytes() +
         static_cast<int64_t>(impl_->excess.size() * sizeof(CellExcess) +
                              impl_->excess_begin.size() * sizeof(int64_t));
}
int64_t SpikeWeight::channel_major_bytes() const {
  return impl_->bands.bytes() + impl_->tiles.channels.bytes();
}

SpikeWeight prepare_spike_weight(Context& context, const SpikeWeightSource& source,
                                 const SpikeWeightOptions& options) {
  check_source(source, options.short_last_group);
  check_scales(source.scales);
  check_residual(source.codes, source.residual, ErrorKind::kUsage);
  SpikeWeight weight;
  weight.impl_ = std::make_unique<SpikeWeight::Impl>();
  SpikeWeight::Impl& impl = *weight.impl_;
  impl.rows = source.codes.shape()[0];
  impl.columns = source.codes.shape()[1];
  impl.device = context.device();
  sort_residual(source, impl);
  if (context.device().is_cuda()) {
    prepare_spike_weight_cuda(context, source, options, impl);
    return weight;
  }
  pack_cells(context, source, impl);
  if (options.channel_major) pack_bands(context, source, impl);
  return weight;
}

}  // namespace spb::spike
