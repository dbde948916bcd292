// Weights in the layout of a CUDA device: packed on the host, then copied.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/cuda/cuda.h"
#include "spike/spike_matmul/spike_matmul_cuda.h"

namespace spb::spike {
namespace {

constexpr int64_t kPiece = 16;  // bytes that keep together

int64_t tiles_of(int64_t rows) { return (rows + kDeviceTileRows - 1) / kDeviceTileRows; }

// Byte of a tile that holds the code of a row and a column of the group.
int64_t place_in_tile(int64_t row, int64_t column) {
  return row * kScaleGroup + ((column / kPiece) ^ (row & 7)) * kPiece + column % kPiece;
}

Buffer on_device(const Device& device, const void* from, int64_t bytes) {
  if (bytes == 0) return {};
  Buffer to(bytes, device);
  cuda::copy_to_device(device.index, to.data(), from, bytes);
  return to;
}
template <typename T>
Buffer on_device(const Device& device, const std::vector<T>& from) {
  return on_device(device, from.data(), static_cast<int64_t>(from.size() * sizeof(T)));
}

// A row of the source into its tiles, which lie `groups` after another.
void pack_row(const int8_t* codes, int64_t columns, int64_t row, std::byte* tiles) {
  for (int64_t c = 0; c < columns; c += kPiece) {
    std::memcpy(tiles + c / kScaleGroup * kDeviceTileBytes +
                    place_in_tile(row % kDeviceTileRows, c % kScaleGroup),
                codes + c, static_cast<size_t>(std::min(kPiece, columns - c)));
  }
}

void pack_tiles(Context& context, const SpikeWeightSource& source, SpikeWeight::Impl& impl) {
  const int64_t groups = impl.groups();
  const int64_t tiles = tiles_of(impl.rows);
  Buffer codes(tiles * groups * kDeviceTileBytes);
  std::vector<float> scales(static_cast<size_t>(tiles * groups * kDeviceTileRows));
  context.pool().parallel_for(impl.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t tile = n / kDeviceTileRows;
      pack_row(source.codes.row_as<int8_t>(n), impl.columns, n,
               codes.data() + tile * groups * kDeviceTileBytes);
      for (int64_t g = 0; g < groups; ++g) {
        scales[static_cast<size_t>((tile * groups + g) * kDeviceTileRows + n % kDeviceTileRows)] =
            source.scales.row_as<float>(n)[g];
      }
    }
  });
  impl.tiles.codes = on_device(impl.device, codes.data(), codes.bytes());
  impl.tiles.scales = on_device(impl.device, scales);
}

void pack_channels(Context& context, const SpikeWeightSource& source, SpikeWeight::Impl& impl) {
  const int64_t padded =
      (impl.rows + kDeviceChannelRows - 1) / kDeviceChannelRows * kDeviceChannelRows;
  Buffer turned(impl.columns * padded);
  context.pool().parallel_for(impl.columns, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = 0; n < impl.rows; ++n) {
      const auto* codes = source.codes.row_as<int8_t>(n);
      for (int64_t c = begin; c < end; ++c) turned.as<int8_t>()[c * padded + n] = codes[c];
    }
  });
  impl.tiles.channels = on_device(impl.device, turned.data(), turned.bytes());
}

// Rows with a code too large for digits.
std::vector<int32_t> find_far_rows(const SpikeWeightSource& source) {
  std::vector<int32_t> rows;
  for (const CodeExcess& e : source.residual) {
    const int32_t code = source.codes.row_as<int8_t>(e.row)[e.column] + e.excess;
    if (std::abs(code) <= kDigitCode) continue;
    if (rows.empty() || rows.back() != e.row) rows.push_back(e.row);
  }
  return rows;
}

// excess = low + 256 * high, low in -128 .. 127
int32_t low_digit(int32_t excess) { return ((excess + 128) & 255) - 128; }

void pack_digits(const SpikeWeightSource& source, const std::vector<int32_t>& far_rows,
                 SpikeWeight::Impl& impl) {
  std::vector<CodeExcess> near;
  for (const CodeExcess& e : source.residual) {
    if (!std::binary_search(far_rows.begin(), far_rows.end(), e.row)) near.push_back(e);
  }
  const int64_t groups = impl.groups();
  const auto tile_of = [&](const CodeExcess& e) {
    return static_cast<size_t>(e.row / kDeviceTileRows * groups + e.column / kScaleGroup);
  };
  // First how many digits each tile has, then where they begin.
  std::vector<int32_t> index(static_cast<size_t>(tiles_of(impl.rows) * groups), -1);
  for (const CodeExcess& e : near) {
    const int32_t high = e.excess == low_digit(e.excess) ? 0 : 1;
    index[tile_of(e)] = std::max(index[tile_of(e)], high);
  }
  int32_t tiles = 0;
  for (int32_t& entry : index) {
    if (entry < 0) continue;
    const int32_t high = entry;
    entry = 2 * tiles + high;
    tiles += 1 + high;
  }
  Buffer digits(tiles * kDeviceTileBytes);
  for (const CodeExcess& e : near) {
    auto* low = digits.as<int8_t>() + index[tile_of(e)] / 2 * kDeviceTileBytes;
    const int64_t place = place_in_tile(e.row % kDeviceTileRows, e.column % kScaleGroup);
    low[place] = static_cast<int8_t>(low_digit(e.excess));
    const int32_t high = (e.excess - low_digit(e.excess)) / 256;
    if (high != 0) low[kDeviceTileBytes + place] = static_cast<int8_t>(high);
  }
  impl.tiles.digits = on_device(impl.device, digits.data(), digits.bytes());
  impl.tiles.digit_index = on_device(impl.device, index);
}

}  // namespace

void prepare_spike_weight_cuda(Context& context, const SpikeWeightSource& source,
                               const SpikeWeightOptions& options, SpikeWeight::Impl& impl) {
  pack_tiles(context, source, impl);
  if (options.channel_major) pack_channels(context, source, impl);
  if (source.residual.empty()) return;
  const std::vector<int32_t> far_rows = find_far_rows(source);
  pack_digits(source, far_rows, impl);
  impl.tiles.far_rows = on_device(impl.device, far_rows);
  impl.tiles.far_row_count = static_cast<int64_t>(far_rows.size());
  if (!far_rows.empty()) {
    std::vector<int8_t> flags(static_cast<size_t>(impl.rows), 0);
    for (const int32_t row : far_rows) flags[static_cast<size_t>(row)] = 1;
    impl.tiles.far_row_flags = on_device(impl.device, flags);
  }
  impl.tiles.excess = on_device(impl.device, impl.excess);
  impl.tiles.excess_begin = on_device(impl.device, impl.excess_begin);
}

}  // namespace spb::spike
