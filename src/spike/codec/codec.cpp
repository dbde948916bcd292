#include "spike/codec/codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <limits>

#include "core/tensor_check.h"
#include "spike/codec/codec_cpu.h"

namespace spb::spike {
namespace {

constexpr std::array<std::string_view, kNumCodings> kNames = {
    "binary", "ternary", "bitwise", "bitwise-bidirectional", "twos-complement"};

// Bits of the two's complement of a count beside its sign.
int64_t bits_beside_sign(int32_t count) {
  return std::bit_width(static_cast<uint32_t>(count < 0 ? ~count : count));
}

void check_train(std::string_view operation, const ConstTensorView& train, Coding coding,
                 const ConstTensorView& counts) {
  const Shape& shape = train.shape();
  check(shape.rank() == 2, "{}: train: expected [T, n], got {}", operation, shape);
  check(shape[0] >= 1 && shape[0] <= max_timesteps(coding),
        "{}: train: expected 1 to {} timesteps for the {} coding, got {}", operation,
        max_timesteps(coding), name(coding), shape[0]);
  check_tensor(operation, "train", train, DType::kI8, shape);
  check_tensor(operation, "counts", counts, DType::kI32, Shape{shape[1]});
  check_no_overlap(operation, "train", train, "counts", counts);
}

}  // namespace

std::string_view name(Coding coding) { return kNames.at(static_cast<size_t>(coding)); }

std::optional<Coding> parse_coding(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) return std::nullopt;
  return static_cast<Coding>(found - kNames.begin());
}

bool is_bitwise(Coding coding) { return coding >= Coding::kBitwise; }

bool is_signed(Coding coding) { return coding != Coding::kBinary && coding != Coding::kBitwise; }

bool has_negative_spikes(Coding coding) {
  return coding == Coding::kTernary || coding == Coding::kBitwiseBidirectional;
}

int64_t max_timesteps(Coding coding) {
  return is_bitwise(coding) ? 32 : std::numeric_limits<int32_t>::max();
}

CountRange count_range(const ConstTensorView& counts) {
  CountRange range;
  for (int64_t m = 0; m < counts.shape().rows(); ++m) {
    const int32_t* row = counts.row_as<int32_t>(m);
    for (int64_t c = 0; c < counts.shape().last(); ++c) {
      range.lowest = std::min(range.lowest, row[c]);
      range.highest = std::max(range.highest, row[c]);
    }
  }
  return range;
}

int64_t minimal_timesteps(Coding coding, CountRange range) {
  check_data(range.lowest >= 0 || is_signed(coding),
             "spike coding: counts: expected none below 0 for the {} coding, got {}", name(coding),
             range.lowest);
  const int64_t size = std::max(std::abs(int64_t{range.highest}), std::abs(int64_t{range.lowest}));
  switch (coding) {
    case Coding::kBinary:
    case Coding::kTernary: return std::max<int64_t>(1, size);
    case Coding::kBitwise:
    case Coding::kBitwiseBidirectional:
      return std::max<int64_t>(1, std::bit_width(static_cast<uint64_t>(size)));
    case Coding::kTwosComplement:
      return 1 + std::max(bits_beside_sign(range.highest), bits_beside_sign(range.lowest));
  }
  fail(ErrorKind::kUsage, "spike coding: unknown coding {}", static_cast<int>(coding));
}

int32_t spike_at(Coding coding, BitOrder order, int32_t count, int64_t timestep,
                 int64_t timesteps) {
  const int32_t sign = count < 0 ? -1 : 1;
  const int64_t size = count < 0 ? -int64_t{count} : int64_t{count};
  if (!is_bitwise(coding)) return timestep < size ? sign : 0;
  const int64_t bit =
      order == BitOrder::kMostSignificantFirst ? timesteps - 1 - timestep : timestep;
  if (coding == Coding::kTwosComplement) return static_cast<int32_t>((int64_t{count} >> bit) & 1);
  return sign * static_cast<int32_t>((size >> bit) & 1);
}

void encode_spikes(Context& context, const EncodeArgs& args) {
  check_train("encode_spikes", args.train, args.coding, args.counts);
  const CountRange range = count_range(args.counts);
  const int64_t needed = minimal_timesteps(args.coding, range);
  check(args.train.shape()[0] >= needed,
        "encode_spikes: timesteps: expected at least {} to send {} to {} in the {} coding, got {}",
        needed, range.lowest, range.highest, name(args.coding), args.train.shape()[0]);
  encode_spikes_cpu(context, args);
}

void decode_spikes(Context& context, const DecodeArgs& args) {
  check_train("decode_spikes", args.train, args.coding, args.counts);
  decode_spikes_cpu(context, args);
}

void join_counts(const SpikeCounts& spikes, const TensorView& counts) {
  const Shape& shape = spikes.core.shape();
  check_tensor("join_counts", "core", spikes.core, DType::kI8, shape);
  check_tensor("join_counts", "counts", counts, DType::kI32, shape);
  check_no_overlap("join_counts", "core", spikes.core, "counts", counts);
  for (int64_t m = 0; m < shape.rows(); ++m) {
    const int8_t* core = spikes.core.row_as<int8_t>(m);
    std::copy(core, core + shape.last(), counts.row_as<int32_t>(m));
  }
  for (const Burst& burst : spikes.bursts) {
    check(burst.row >= 0 && burst.row < shape.rows() && burst.channel >= 0 &&
              burst.channel < shape.last(),
          "join_counts: bursts: expected rows and channels of {}, got row {}, channel {}", shape,
          burst.row, burst.channel);
    counts.row_as<int32_t>(burst.row)[burst.channel] += burst.excess;
  }
}

}  // namespace spb::spike
