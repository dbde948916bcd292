// SpikeWeight: a matrix of integer weight codes in the layouts that spike_matmul reads.
//
//   W[n, c] = scale[n, c / 128] * code[n, c]        code = core + excess
//
// The core is int8; the excess, which is zero nearly everywhere, comes as a list. Codes are exact
// whatever their size up to 2^24, so a checkpoint whose codes exceed int8 keeps its values.
#pragma once

#include <memory>
#include <span>

#include "core/context.h"
#include "core/error.h"
#include "core/tensor_view.h"

namespace spb::spike {

inline constexpr int64_t kScaleGroup = 128;       // consecutive input channels that share a scale
inline constexpr int32_t kMaxCode = 1 << 24;      // largest |code|: above it f32 skips integers
inline constexpr int64_t kMaxChannels = 1 << 22;  // largest K

// What a code exceeds the int8 core by.
struct CodeExcess {
  int32_t row;
  int32_t column;
  int32_t excess;  // code - core

  bool operator==(const CodeExcess&) const = default;
};

// The residual of codes [N, K] i8: places inside, ascending, each once, else an error of `kind`;
// codes up to kMaxCode, else kData.
void check_residual(ConstTensorView codes, std::span<const CodeExcess> residual, ErrorKind kind);

struct SpikeWeightSource {
  ConstTensorView codes;                 // core [N, K] i8
  ConstTensorView scales;                // [N, groups] f32, finite
  std::span<const CodeExcess> residual;  // sorted by (row, column), each place once
};

struct SpikeWeightOptions {
  bool channel_major = false;     // also make the copy that event-driven products read
  bool short_last_group = false;  // K need not be a multiple of 128: the last group is shorter
};

class SpikeWeight {
 public:
  SpikeWeight();
  ~SpikeWeight();
  SpikeWeight(SpikeWeight&&) noexcept;
  SpikeWeight& operator=(SpikeWeight&&) noexcept;

  bool defined() const { return impl_ != nullptr; }
  int64_t rows() const;                 // N
  int64_t columns() const;              // K
  int64_t residual_codes() const;       // entries of the excess
  bool channel_major() const;           // whether the copy for event-driven products exists
  int64_t bytes() const;                // a dense product reads so many
  int64_t channel_major_bytes() const;  // held beside them by the copy; 0 without it

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  friend SpikeWeight prepare_spike_weight(Context&, const SpikeWeightSource&,
                                          const SpikeWeightOptions&);
  std::unique_ptr<Impl> impl_;
};

// Copies the source into interleaved cells: 1 + 4 / 128 bytes per weight, rows padded to 16. With
// `channel_major` a second copy is made in which the weights of one input channel lie together, as
// event-driven products need: as much memory again, rows padded to 256, 512 or 1024. The residual
// takes 4 bytes an entry and, if there is any, 8 for every 2048 weights. On a CUDA device the
// source still lies on the host; tiles have 192 rows, the last one padded, and the channel-major
// copy needs no bands, its rows are padded to 128. There a residual takes another byte or two for
// each of the 24576 codes of its tile. kUsage for wrong dtypes, shapes and an unsorted residual,
// and when the group size does not divide K unless the last group may be short; kData for a scale
// that is not finite and a code beyond kMaxCode.
SpikeWeight prepare_spike_weight(Context& context, const SpikeWeightSource& source,
                                 const SpikeWeightOptions& options = {});

}  // namespace spb::spike
