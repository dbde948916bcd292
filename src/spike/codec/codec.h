// codec: unfolds signed spike counts over timesteps into a spike train, and back.
//
//   coding                   spikes      the train of s over T timesteps, t = 0 .. T - 1
//   kBinary                  0, 1        s spikes, then silence; s >= 0
//   kTernary                 -1, 0, 1    |s| spikes of the sign of s, then silence
//   kBitwise                 0, 1        bits of s; s >= 0
//   kBitwiseBidirectional    -1, 0, 1    bits of |s|, times the sign of s
//   kTwosComplement          0, 1        bits of s modulo 2^T
//
// The bitwise codings send the most significant bit first unless told otherwise: with it first,
// timestep t weighs 2^(T - 1 - t), else 2^t. The top bit of the two's complement weighs minus that.
// Decoding sums weight times spike (weight 1 in the first two codings), so decode(encode(s)) = s.
//
//   encode_spikes   counts  [n] i32     read
//                   train   [T, n] i8   overwritten; its rows say how many timesteps
//   decode_spikes   train   [T, n] i8   read
//                   counts  [n] i32     overwritten
//
// The tensors of a call lie apart. Integers only, so every result is exact and the same for every
// number of threads. No operation drops bits or changes a count in silence:
//
// Errors: kUsage for timesteps outside 1 .. max_timesteps(coding) and for timesteps too few for the
// counts. kData for a negative count in a coding without sign, a spike that the coding does not
// have, and a train whose count needs more than 32 bits; the message names where.
// Source: the SpikingBrain-7B report (2025), section on spike coding; its equation 23 sends the
// least significant bit first, its figure and its code the most significant.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/context.h"
#include "core/tensor_view.h"
#include "spike/threshold/threshold.h"

namespace spb::spike {

enum class Coding {
  kBinary,
  kTernary,
  kBitwise,
  kBitwiseBidirectional,
  kTwosComplement,
};
inline constexpr int kNumCodings = 5;

enum class BitOrder { kMostSignificantFirst, kLeastSignificantFirst };

// "binary", "ternary", "bitwise", "bitwise-bidirectional", "twos-complement".
std::string_view name(Coding coding);
std::optional<Coding> parse_coding(std::string_view name);

bool is_bitwise(Coding coding);  // timesteps have weights
bool is_signed(Coding coding);   // negative counts can be sent
bool has_negative_spikes(Coding coding);

// The most timesteps a train may have: 32 where they are bits, 2^31 - 1 elsewhere.
int64_t max_timesteps(Coding coding);

struct CountRange {
  int32_t lowest = 0;
  int32_t highest = 0;
};

// The smallest range that holds 0 and every count.
CountRange count_range(const ConstTensorView& counts);

// The fewest timesteps that hold every count of the range, at least 1. For the two's complement
// [-128, 127] needs 8. kData error for negative counts in a coding without sign.
int64_t minimal_timesteps(Coding coding, CountRange range);

// The definition: the spike of `count` at one timestep. The count must fit.
int32_t spike_at(Coding coding, BitOrder order, int32_t count, int64_t timestep, int64_t timesteps);

struct EncodeArgs {
  ConstTensorView counts;
  Coding coding = Coding::kBitwiseBidirectional;
  BitOrder order = BitOrder::kMostSignificantFirst;
  TensorView train;
};

struct DecodeArgs {
  ConstTensorView train;
  Coding coding = Coding::kBitwiseBidirectional;
  BitOrder order = BitOrder::kMostSignificantFirst;
  TensorView counts;
};

void encode_spikes(Context& context, const EncodeArgs& args);
void decode_spikes(Context& context, const DecodeArgs& args);

// Mean |spike| over elements and timesteps; 0 for a train without elements.
double firing_rate(const ConstTensorView& train);

// Whole counts [M, K] i32: the core with the bursts added.
void join_counts(const SpikeCounts& spikes, const TensorView& counts);

}  // namespace spb::spike
