#include <benchmark/benchmark.h>

#include <vector>

#include "core/buffer.h"
#include "core/rng.h"
#include "spike/codec/codec.h"

namespace spb::spike {
namespace {

// Counts up to 127 in magnitude, mostly small, over the fewest timesteps.
struct Case {
  Case(Coding coding, int64_t count) : counts(static_cast<size_t>(count)), back(counts.size()) {
    Rng rng(1);
    for (int32_t& s : counts) s = static_cast<int32_t>(rng.normal() * 3.0f);
    counts[0] = 127;
    if (!is_signed(coding)) {
      for (int32_t& s : counts) s = std::abs(s);
    }
    const Shape shape{count};
    encode = {{counts.data(), shape}, coding, BitOrder::kMostSignificantFirst, {}};
    train = Tensor(DType::kI8, Shape{minimal_timesteps(coding, count_range(encode.counts)), count});
    encode.train = train.view();
    decode = {train.view(), coding, encode.order, {back.data(), shape}};
  }

  bool right(Context& context) {
    encode_spikes(context, encode);
    decode_spikes(context, decode);
    return back == counts;
  }

  std::vector<int32_t> counts, back;
  Tensor train;
  EncodeArgs encode;
  DecodeArgs decode;
};

template <bool kEncode>
void codec(benchmark::State& state) {
  Context context;
  Case work(static_cast<Coding>(state.range(0)), state.range(1));
  if (!work.right(context)) return state.SkipWithError("decoding does not give the counts back");
  for (auto _ : state) {
    if constexpr (kEncode) {
      encode_spikes(context, work.encode);
    } else {
      decode_spikes(context, work.decode);
    }
  }
  state.SetBytesProcessed(state.iterations() * (work.train.bytes() + state.range(1) * 4));
  state.SetLabel(std::string(name(work.encode.coding)));
}
BENCHMARK_TEMPLATE(codec, true)
    ->Name("encode")
    ->ArgsProduct({{0, 1, 2, 3, 4}, {1 << 20}})
    ->UseRealTime();
BENCHMARK_TEMPLATE(codec, false)
    ->Name("decode")
    ->ArgsProduct({{0, 1, 2, 3, 4}, {1 << 20}})
    ->UseRealTime();

}  // namespace
}  // namespace spb::spike

BENCHMARK_MAIN();
