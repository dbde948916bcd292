// softmax_attention on a CUDA device against the reference: any cache, length, window and batch.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/test_cuda.h"
#include "ops/softmax_attention/softmax_attention.h"

namespace spb::ops {
namespace {

struct Case {
  int64_t tokens;
  int64_t before;  // positions already in the cache
  int64_t window;
  int64_t capacity;
  int64_t sinks;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;
};

constexpr Case kCases[] = {{1, 0, 0, 4, 0, 2, 2, 64},          {1, 999, 0, 1000, 0, 14, 2, 128},
                           {1, 5000, 512, 640, 0, 7, 1, 128},  {5, 300, 100, 128, 3, 4, 2, 32},
                           {63, 0, 0, 64, 0, 7, 1, 64},        {65, 0, 33, 97, 0, 4, 4, 128},
                           {200, 77, 0, 400, 0, 14, 2, 128},   {300, 1000, 128, 427, 0, 7, 1, 64},
                           {130, 500, 64, 200, 70, 4, 2, 128}, {260, 900, 150, 409, 0, 56, 8, 64},
                           {200, 0, 0, 256, 130, 14, 2, 128}};

std::string describe(const Case& c) {
  return fmt::format("{} tokens after {}, window {}, capacity {}, sinks {}, heads {} / {}, dim {}",
                     c.tokens, c.before, c.window, c.capacity, c.sinks, c.heads, c.kv_heads, c.dim);
}

double bound(DType activations) { return activations == DType::kF32 ? 2e-6 : 6e-3; }

// Keys and values where one side of a comparison keeps them.
struct Store {
  Tensor keys, values;
  Tensor key_scales, value_scales;  // with i8

  Store() = default;
  Store(DType dtype, const Shape& shape, const Device& device)
      : keys(dtype, shape, device), values(dtype, shape, device) {
    if (dtype != DType::kI8) return;
    key_scales = Tensor(DType::kF32, Shape{shape[0], shape[1]}, device);
    value_scales = Tensor(DType::kF32, key_scales.shape(), device);
  }

  void append(Context& context, ConstTensorView k, ConstTensorView v, int64_t position) {
    append_to_cache(context, {k, v, keys, values, position, key_scales, value_scales});
  }
  void show(SoftmaxAttentionArgs& args) const {
    args.keys = keys, args.values = values;
    args.key_scales = key_scales, args.value_scales = value_scales;
  }
  void show_as_sinks(SoftmaxAttentionArgs& args) const {
    args.sink_keys = keys, args.sink_values = values;
    args.sink_key_scales = key_scales, args.sink_value_scales = value_scales;
  }
  CachedSequence sequence(int64_t tokens, int64_t before) {
    return {tokens, keys, values, before, key_scales, value_scales};
  }
};

// Both sides: the host in f32 or codes, the device in the cache's dtype.
struct Stores {
  Store host, device;

  Stores() = default;
  Stores(Context& context, DType dtype, const Shape& shape)
      : host(dtype == DType::kI8 ? dtype : DType::kF32, shape, Device()),
        device(dtype, shape, context.device()) {}
};

// One call, as both sides take it, without its output.
struct Call {
  Stores cache, sinks;
  Tensor q, q_device;
  SoftmaxAttentionArgs host, device;
};

// Sequences of one batch, cut to a window each.
struct Batch {
  std::vector<int64_t> tokens;
  std::vector<int64_t> before;
  int64_t window;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;

  int64_t capacity(size_t i) const {
    const int64_t all = before[i] + tokens[i];
    return std::max<int64_t>(1, window > 0 ? std::min(all, window + tokens[i] - 1) : all);
  }
  Case alone(size_t i) const {
    return {tokens[i], before[i], window, capacity(i), 0, heads, kv_heads, dim};
  }
};

class SoftmaxAttentionCuda : public test::OnCuda {
 protected:
  void append(Stores& to, int64_t position, int64_t count, DType dtype) {
    const Shape& cache = to.host.keys.shape();
    const Tensor k = test::random_tensor(rng_, Shape{count, cache[0], cache[2]});
    const Tensor v = test::random_tensor(rng_, k.shape());
    to.host.append(cpu_, k, v, position);
    to.device.append(context(), test::put(context(), k, dtype), test::put(context(), v, dtype),
                     position);
  }

  // What is left of positions 0 .. end: once around, and once over what was there.
  void fill(Stores& to, int64_t end, DType dtype) {
    const int64_t capacity = to.host.keys.shape()[1];
    for (int64_t at = std::max<int64_t>(0, end - 2 * capacity); at < end;) {
      const int64_t count = std::min(capacity, end - at);
      append(to, at, count, dtype);
      at += count;
    }
  }

  Call call_of(const Case& c, DType dtype) {
    Call call;
    call.cache = Stores(context(), GetParam(), Shape{c.kv_heads, c.capacity, c.dim});
    fill(call.cache, c.before + c.tokens, dtype);
    call.q = test::random_tensor(rng_, Shape{c.tokens, c.heads, c.dim}, 2.0f);
    call.q_device = test::put(context(), call.q, dtype);
    call.host.q = call.q;
    call.device.q = call.q_device;
    for (SoftmaxAttentionArgs* args : {&call.host, &call.device}) {
      args->first_position = c.before;
      args->window_size = c.window;
      args->scale = 0.125f;
    }
    call.cache.host.show(call.host);
    call.cache.device.show(call.device);
    if (c.sinks == 0) return call;
    call.sinks = Stores(context(), GetParam(), Shape{c.kv_heads, c.sinks, c.dim});
    append(call.sinks, 0, c.sinks, dtype);
    call.sinks.host.show_as_sinks(call.host);
    call.sinks.device.show_as_sinks(call.device);
    return call;
  }

  Tensor run(SoftmaxAttentionArgs args) {
    Tensor o = test::poisoned(context(), args.q.shape(), args.q.dtype());
    args.o = o;
    softmax_attention(context(), args);
    return test::take(context(), o);
  }
  Tensor run_in_place(SoftmaxAttentionArgs args) {
    Tensor both(args.q.dtype(), args.q.shape(), context().device());
    copy_tensor(context(), args.q, both);
    args.q = both, args.o = both;
    softmax_attention(context(), args);
    return test::take(context(), both);
  }

  // Of `count` queries from `first` on.
  double error_of_rows(const Call& call, const Tensor& got, int64_t first, int64_t count) {
    const Shape& all = call.q.shape();
    const Shape shape{count, all[1], all[2]};
    Tensor expected(DType::kF32, shape);
    SoftmaxAttentionArgs args = call.host;
    args.q = ConstTensorView(call.q.view().row(first * all[1]), DType::kF32, shape);
    args.o = expected;
    args.first_position += first;
    softmax_attention_reference(args);
    const ConstTensorView rows(got.view().row(first * all[1]), DType::kF32, shape);
    return test::relative_error(rows, expected);
  }

  void expect_agreement(const Case& c) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Call call = call_of(c, dtype);
      EXPECT_LE(error_of_rows(call, run(call.device), 0, c.tokens), bound(dtype))
          << describe(c) << ", " << name(dtype);
    }
  }

  // A batch: appended together, attended together, and everything alone.
  void expect_batch_agrees(const Batch& batch, DType dtype);

  Context cpu_{1};
  Rng rng_{61};
};

INSTANTIATE_TEST_SUITE_P(Caches, SoftmaxAttentionCuda,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16, DType::kI8),
                         test::dtype_name);

TEST_P(SoftmaxAttentionCuda, AgreesWithTheReference) {
  for (const Case& c : kCases) expect_agreement(c);
}

TEST_P(SoftmaxAttentionCuda, LongPrompts) {
  expect_agreement({4095, 0, 40, 4134, 0, 2, 1, 64});
  expect_agreement({4097, 100, 40, 4136, 3, 2, 2, 128});
}

// The first queries see one key, and the last ones all of them.
TEST_P(SoftmaxAttentionCuda, LongPromptsWithoutAWindow) {
  constexpr int64_t kRows = 17;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const Case& c : {Case{4095, 0, 0, 4095, 0, 1, 1, 128}, {4097, 0, 0, 4097, 0, 2, 1, 64}}) {
      const Call call = call_of(c, dtype);
      const Tensor o = run(call.device);
      for (const int64_t first : {int64_t{0}, c.tokens / 2, c.tokens - kRows}) {
        EXPECT_LE(error_of_rows(call, o, first, kRows), bound(dtype))
            << describe(c) << ", " << name(dtype) << ", queries from " << first;
      }
    }
  }
}

// Parts become longer where there would be more of them than one join takes.
TEST_P(SoftmaxAttentionCuda, OneTokenOverManyKeys) {
  expect_agreement({1, 16383, 0, 16384, 0, 2, 1, 64});
  expect_agreement({1, 17000, 0, 17001, 0, 2, 1, 64});
  expect_agreement({1, 17000, 0, 17001, 3, 2, 1, 128});
}

TEST_P(SoftmaxAttentionCuda, SinksAndNothingElse) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t tokens : {1, 40, 200}) {
      const Case c{tokens, 0, 0, tokens, 70, 4, 2, 64};
      Call call = call_of(c, dtype);
      for (SoftmaxAttentionArgs* args : {&call.host, &call.device}) Store().show(*args);
      EXPECT_LE(error_of_rows(call, run(call.device), 0, tokens), bound(dtype))
          << describe(c) << ", " << name(dtype);
    }
  }
}

// Both halves of a position count, where it names a slot and where it ends what is seen.
TEST_P(SoftmaxAttentionCuda, PositionsBeyond32Bits) {
  constexpr int64_t kFar = int64_t{1} << 32;
  expect_agreement({1, kFar + 5, 100, 130, 0, 2, 1, 64});
  expect_agreement({1, kFar - 1, 100, 130, 3, 2, 1, 128});
  expect_agreement({40, kFar - 20, 50, 200, 0, 2, 1, 64});
  expect_agreement({200, kFar - 70, 50, 257, 0, 2, 2, 64});
  expect_agreement({200, kFar * 100 + 77, 50, 300, 5, 2, 1, 128});
}

// Tokens of all sequences, one after the other, of each side.
struct BatchTokens {
  Tensor k, v, q;
  int64_t first = 0;

  ConstTensorView part(const Tensor& all, int64_t count) const {
    const Shape& shape = all.shape();
    return {all.view().row(first * shape[1]), DType::kF32, Shape{count, shape[1], shape[2]}};
  }
};

void SoftmaxAttentionCuda::expect_batch_agrees(const Batch& batch, DType dtype) {
  int64_t all = 0;
  std::vector<Stores> stores;
  std::vector<CachedSequence> sequences;
  for (size_t i = 0; i < batch.tokens.size(); ++i) {
    const Case c = batch.alone(i);
    stores.emplace_back(context(), GetParam(), Shape{c.kv_heads, c.capacity, c.dim});
    fill(stores.back(), c.before, dtype);
    sequences.push_back(stores.back().device.sequence(c.tokens, c.before));
    all += c.tokens;
  }
  BatchTokens tokens{test::random_tensor(rng_, Shape{all, batch.kv_heads, batch.dim}),
                     test::random_tensor(rng_, Shape{all, batch.kv_heads, batch.dim}),
                     test::random_tensor(rng_, Shape{all, batch.heads, batch.dim}, 2.0f)};
  append_to_cache(context(), {test::put(context(), tokens.k, dtype),
                              test::put(context(), tokens.v, dtype),
                              {},
                              {},
                              0,
                              {},
                              {},
                              sequences});
  SoftmaxAttentionArgs args;
  const Tensor q = test::put(context(), tokens.q, dtype);
  args.q = q;
  args.window_size = batch.window;
  args.scale = 0.125f;
  args.sequences = sequences;
  const Tensor together = run(args);
  EXPECT_TRUE(test::same_bits(run_in_place(args), together)) << "in place";
  args.sequences = {};
  for (size_t i = 0; i < stores.size(); tokens.first += batch.tokens[i++]) {
    const Case c = batch.alone(i);
    if (c.tokens == 0) continue;
    stores[i].host.append(cpu_, tokens.part(tokens.k, c.tokens), tokens.part(tokens.v, c.tokens),
                          c.before);
    args.first_position = c.before;
    stores[i].host.show(args);
    args.q = tokens.part(tokens.q, c.tokens);
    Tensor expected(DType::kF32, args.q.shape());
    args.o = expected;
    softmax_attention_reference(args);
    const ConstTensorView got = tokens.part(together, c.tokens);
    EXPECT_LE(test::relative_error(got, expected), bound(dtype)) << describe(c);
    const Tensor own = test::put(context(), args.q, dtype);
    args.q = own;
    stores[i].device.show(args);
    EXPECT_TRUE(test::same_bits(run(args), got)) << describe(c) << ", alone";
  }
}

TEST_P(SoftmaxAttentionCuda, BatchOfAwkwardLengths) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    expect_batch_agrees({{0, 1, 100, 5000, 1, 1, 0}, {3, 90, 50, 0, 0, 700, 0}, 40, 2, 1, 64},
                        dtype);
    expect_batch_agrees({{100, 1, 1, 33}, {0, 300, 0, 129}, 0, 4, 2, 128}, dtype);
  }
}

TEST_P(SoftmaxAttentionCuda, MoreSequencesThanALaunchTakes) {
  Batch batch{std::vector<int64_t>(60, 1), {}, 0, 2, 1, 64};
  for (int64_t i = 0; i < 60; ++i) batch.before.push_back(i * 53 % 397);
  for (const DType dtype : {DType::kF32, DType::kBF16}) expect_batch_agrees(batch, dtype);
}

TEST_P(SoftmaxAttentionCuda, OutputMayBeTheQueries) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const Case& c : {Case{1, 400, 0, 401, 0, 14, 2, 128}, Case{20, 30, 0, 50, 3, 7, 1, 64},
                          Case{40, 0, 0, 64, 0, 7, 1, 64}, Case{300, 70, 90, 400, 0, 4, 2, 128}}) {
      const Call call = call_of(c, dtype);
      EXPECT_TRUE(test::same_bits(run_in_place(call.device), run(call.device)))
          << describe(c) << ", " << name(dtype);
    }
  }
}

// Whether the elements of a row of [tokens, heads, dim] are NaN: all or none of them.
bool is_nan(const Tensor& o, int64_t row) {
  const int64_t dim = o.shape().last();
  const float* x = o.as<float>() + row * dim;
  const auto count = std::count_if(x, x + dim, [](float value) { return std::isnan(value); });
  EXPECT_TRUE(count == 0 || count == dim) << row;
  return count > 0;
}

// Rows that are not NaN have the bits that they have in `clean`.
void expect_nan_only(const Tensor& got, const Tensor& clean,
                     const std::function<bool(int64_t)>& spoiled) {
  const int64_t dim = got.shape().last();
  for (int64_t row = 0; row < got.shape().rows(); ++row) {
    ASSERT_EQ(is_nan(got, row), spoiled(row)) << "row " << row;
    if (spoiled(row)) continue;
    ASSERT_EQ(std::memcmp(got.as<float>() + row * dim, clean.as<float>() + row * dim,
                          static_cast<size_t>(dim) * sizeof(float)),
              0)
        << "row " << row;
  }
}

TEST_P(SoftmaxAttentionCuda, NanInAQueryStaysInItsRow) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t tokens : {3, 40, 200}) {
      Call call = call_of({tokens, 100, 60, 300, 2, 4, 2, 64}, dtype);
      const Tensor clean = run(call.device);
      const int64_t row = tokens / 2 * 4 + 1;
      call.q.as<float>()[row * 64 + 7] = test::kPoison;
      const Tensor q = test::put(context(), call.q, dtype);
      call.device.q = q;
      expect_nan_only(run(call.device), clean, [&](int64_t i) { return i == row; });
    }
  }
}

// Codes are always numbers. Many queries in bf16 share tiles of values, seen or not.
TEST_P(SoftmaxAttentionCuda, NanInACacheSpoilsWhoSeesIt) {
  if (GetParam() == DType::kI8) return;
  constexpr int64_t kWindow = 8;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t tokens : {20, 200}) {
      if (tokens > 20 && dtype == DType::kBF16) continue;
      Call call = call_of({tokens, 100, kWindow, 300, 0, 4, 2, 64}, dtype);
      const Tensor clean = run(call.device);
      const Tensor bad = test::poisoned(context(), Shape{1, 2, 64}, dtype);
      call.cache.device.append(context(), bad, bad, 105);
      expect_nan_only(run(call.device), clean,
                      [](int64_t row) { return row / 4 >= 5 && row / 4 < 5 + kWindow; });
    }
  }
}

}  // namespace
}  // namespace spb::ops
