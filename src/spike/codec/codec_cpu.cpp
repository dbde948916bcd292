#include "spike/codec/codec_cpu.h"

#include <algorithm>
#include <atomic>

namespace spb::spike {
namespace {

// Elements that a thread takes at once: their counts stay in the nearest cache over all timesteps.
constexpr int64_t kBlock = 2048;

// The spikes of one timestep; loops without branches, which the compiler turns into vectors.
void encode_repeated(const int32_t* counts, int64_t count, int64_t timestep, int8_t* spikes) {
  const auto t = static_cast<int32_t>(timestep);
  for (int64_t i = 0; i < count; ++i) {
    spikes[i] = static_cast<int8_t>((counts[i] > t) - (counts[i] < -t));
  }
}

// Complement: the bits as they are stored. Else those of |count|, negative for negative counts.
template <bool kComplement>
void encode_bit(const int32_t* counts, int64_t count, int64_t bit, int8_t* spikes) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t sign = kComplement ? 0 : counts[i] >> 31;  // -1 or 0
    const uint32_t size = (static_cast<uint32_t>(counts[i]) ^ static_cast<uint32_t>(sign)) -
                          static_cast<uint32_t>(sign);
    const auto spike = static_cast<int32_t>((size >> bit) & 1u);
    spikes[i] = static_cast<int8_t>((spike ^ sign) - sign);
  }
}

// The error of the first spike that the coding does not have.
void check_spikes(const DecodeArgs& args) {
  const int lowest = has_negative_spikes(args.coding) ? -1 : 0;
  const int64_t count = args.train.shape()[1];
  for (int64_t t = 0; t < args.train.shape()[0]; ++t) {
    const int8_t* spikes = args.train.row_as<int8_t>(t);
    for (int64_t i = 0; i < count; ++i) {
      check_data(spikes[i] >= lowest && spikes[i] <= 1,
                 "decode_spikes: train: expected spikes from {} to 1 in the {} coding, got {} at "
                 "timestep {}, element {}",
                 lowest, name(args.coding), static_cast<int>(spikes[i]), t, i);
    }
  }
}

// Adds the spikes of one timestep, shifted, or subtracts them. Returns whether all were right.
template <typename Sum>
bool add_spikes(const int8_t* spikes, int64_t count, int lowest, int64_t bit, bool subtract,
                Sum* sums) {
  const Sum flip = subtract ? ~Sum{0} : Sum{0};
  int wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    wrong |= (spikes[i] < lowest) | (spikes[i] > 1);
    sums[i] += (static_cast<Sum>(spikes[i]) << bit ^ flip) - flip;
  }
  return wrong == 0;
}

// Sum is unsigned, so that it wraps: with 64 bits never, with 32 bits to the right count where that
// is known to fit. Returns whether all spikes were right.
template <typename Sum>
bool decode_block(const DecodeArgs& args, int64_t first, int64_t count) {
  const int64_t timesteps = args.train.shape()[0];
  const int lowest = has_negative_spikes(args.coding) ? -1 : 0;
  const bool most_first = args.order == BitOrder::kMostSignificantFirst;
  Sum sums[kBlock] = {};
  bool right = true;
  for (int64_t t = 0; t < timesteps; ++t) {
    const int64_t place = most_first ? timesteps - 1 - t : t;
    const int64_t bit = is_bitwise(args.coding) ? place : 0;
    const bool subtract = args.coding == Coding::kTwosComplement && bit == timesteps - 1;
    right &= add_spikes(args.train.row_as<int8_t>(t) + first, count, lowest, bit, subtract, sums);
  }
  int32_t* counts = args.counts.as<int32_t>() + first;
  for (int64_t i = 0; i < count; ++i) {
    counts[i] = static_cast<int32_t>(sums[i]);
    if constexpr (sizeof(Sum) == 8) {
      check_data(!right || counts[i] == static_cast<int64_t>(sums[i]),
                 "decode_spikes: train: expected counts of 32 bits, got {} at element {}",
                 static_cast<int64_t>(sums[i]), first + i);
    }
  }
  return right;
}

}  // namespace

void encode_spikes_cpu(Context& context, const EncodeArgs& args) {
  const int64_t timesteps = args.train.shape()[0];
  const bool most_first = args.order == BitOrder::kMostSignificantFirst;
  const auto work = [&](int64_t begin, int64_t end, int) {
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t count = std::min(kBlock, end - first);
      const int32_t* counts = args.counts.as<int32_t>() + first;
      for (int64_t t = 0; t < timesteps; ++t) {
        int8_t* spikes = args.train.row_as<int8_t>(t) + first;
        const int64_t bit = most_first ? timesteps - 1 - t : t;
        if (!is_bitwise(args.coding)) {
          encode_repeated(counts, count, t, spikes);
        } else if (args.coding == Coding::kTwosComplement) {
          encode_bit<true>(counts, count, bit, spikes);
        } else {
          encode_bit<false>(counts, count, bit, spikes);
        }
      }
    }
  };
  context.pool().parallel_for(args.train.shape()[1], kBlock, work);
}

void decode_spikes_cpu(Context& context, const DecodeArgs& args) {
  const bool may_overflow = args.train.shape()[0] == 32 && is_bitwise(args.coding) &&
                            args.coding != Coding::kTwosComplement;
  const auto decode = may_overflow ? &decode_block<uint64_t> : &decode_block<uint32_t>;
  std::atomic<bool> right = true;
  const auto work = [&](int64_t begin, int64_t end, int) {
    for (int64_t first = begin; first < end; first += kBlock) {
      if (!decode(args, first, std::min(kBlock, end - first))) right = false;
    }
  };
  context.pool().parallel_for(args.train.shape()[1], kBlock, work);
  if (!right) check_spikes(args);
}

double firing_rate(const ConstTensorView& train) {
  int64_t spikes = 0;
  for (int64_t t = 0; t < train.shape().rows(); ++t) {
    const int8_t* row = train.row_as<int8_t>(t);
    for (int64_t i = 0; i < train.shape().last(); ++i) spikes += row[i] < 0 ? -row[i] : row[i];
  }
  if (train.shape().elements() == 0) return 0;
  return static_cast<double>(spikes) / static_cast<double>(train.shape().elements());
}

}  // namespace spb::spike
