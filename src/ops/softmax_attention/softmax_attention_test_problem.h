// Random problems for the tests of softmax_attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/test_operators.h"
#include "ops/softmax_attention/softmax_attention.h"

namespace spb::ops {

struct Case {
  int64_t tokens = 1;
  int64_t kv_heads = 1;
  int64_t group = 1;
  int64_t head_dim = 64;
  int64_t first_position = 0;
  int64_t window_size = 0;
  int64_t spare = 0;  // slots beyond those needed
  DType dtype = DType::kF32;
  int64_t sinks = 0;
  bool only_sinks = false;  // no cache

  int64_t context() const { return first_position + tokens; }
  int64_t capacity() const {
    const int64_t needed =
        window_size > 0 ? std::min(context(), window_size + tokens - 1) : context();
    return needed + spare;
  }
};

inline std::string describe(const Case& c) {
  return fmt::format("L {} kv {} group {} D {} first {} window {} capacity {} {} sinks {}{} isa {}",
                     c.tokens, c.kv_heads, c.group, c.head_dim, c.first_position, c.window_size,
                     c.capacity(), name(c.dtype), c.sinks, c.only_sinks ? " only" : "",
                     name(isa()));
}

inline void fill_normal(Tensor& tensor, Rng& rng, float scale = 1.0f) {
  float* values = tensor.as<float>();
  for (int64_t i = 0; i < tensor.shape().elements(); ++i) values[i] = scale * rng.normal();
}

inline void fill_value(Tensor& tensor, float value) {
  const int64_t count = tensor.shape().elements();
  switch (tensor.dtype()) {
    case DType::kF16: std::fill_n(tensor.as<f16>(), count, to_f16(value)); break;
    case DType::kBF16: std::fill_n(tensor.as<bf16>(), count, to_bf16(value)); break;
    case DType::kI8: std::fill_n(tensor.as<int8_t>(), count, int8_t{111}); break;
    default: std::fill_n(tensor.as<float>(), count, value); break;
  }
}

// Keys and values, everything unwritten poisoned: numbers or, of codes, their scales.
struct Cache {
  Tensor keys, values;
  Tensor key_scales, value_scales;  // with i8

  Cache(DType dtype, const Shape& shape) : keys(dtype, shape), values(dtype, shape) {
    if (dtype == DType::kI8) {
      key_scales = Tensor(DType::kF32, Shape{shape[0], shape[1]});
      value_scales = Tensor(DType::kF32, key_scales.shape());
    }
    for (Tensor* tensor : {&keys, &values, &key_scales, &value_scales}) {
      if (tensor->defined()) fill_value(*tensor, test::kPoison);
    }
  }

  void append(Context& context, ConstTensorView k, ConstTensorView v, int64_t position) {
    append_to_cache(context, {k, v, keys, values, position, key_scales, value_scales});
  }

  void append_normal(Context& context, int64_t position, int64_t count, Rng& rng) {
    Tensor k(DType::kF32, Shape{count, keys.shape()[0], keys.shape()[2]});
    Tensor v(DType::kF32, k.shape());
    fill_normal(k, rng);
    fill_normal(v, rng);
    append(context, k, v, position);
  }

  void show(SoftmaxAttentionArgs& args) const {
    args.keys = keys;
    args.values = values;
    args.key_scales = key_scales;
    args.value_scales = value_scales;
  }
  void show_as_sinks(SoftmaxAttentionArgs& args) const {
    args.sink_keys = keys;
    args.sink_values = values;
    args.sink_key_scales = key_scales;
    args.sink_value_scales = value_scales;
  }
};

// Queries and a cache filled to the context of the case through append_to_cache.
struct Problem {
  Case c;
  Tensor q, o;
  Cache cache, sinks;

  Problem(const Case& case_, uint64_t seed, Context& context)
      : c(case_),
        q(DType::kF32, Shape{c.tokens, c.kv_heads * c.group, c.head_dim}),
        o(DType::kF32, q.shape()),
        cache(c.dtype, Shape{c.kv_heads, c.capacity(), c.head_dim}),
        sinks(c.dtype, Shape{c.kv_heads, c.sinks, c.head_dim}) {
    Rng rng(seed);
    fill_normal(q, rng);
    fill_value(o, test::kPoison);
    for (int64_t position = 0; position < c.context();) {
      const int64_t count = std::min(c.capacity(), c.context() - position);
      cache.append_normal(context, position, count, rng);
      position += count;
    }
    if (c.sinks > 0) sinks.append_normal(context, 0, c.sinks, rng);
  }

  SoftmaxAttentionArgs args() {
    SoftmaxAttentionArgs args;
    args.q = q;
    args.o = o;
    args.first_position = c.first_position;
    args.window_size = c.window_size;
    args.scale = 1.0f / std::sqrt(float(c.head_dim));
    if (!c.only_sinks) cache.show(args);
    if (c.sinks > 0) sinks.show_as_sinks(args);
    return args;
  }
};

inline std::vector<float> run(Problem& problem, Context& context) {
  fill_value(problem.o, test::kPoison);
  softmax_attention(context, problem.args());
  return test::contents(problem.o);
}

inline std::vector<float> run_reference(Problem& problem) {
  fill_value(problem.o, test::kPoison);
  softmax_attention_reference(problem.args());
  return test::contents(problem.o);
}

// Normal values stay below 5; the bounds are those of the contract.
inline double tolerance(const Case& c) {
  const bool tiles = isa() == Isa::kAmx && c.dtype != DType::kF32 && c.tokens >= 32;
  return tiles ? 2e-3 * 4 : 1e-5 * 4;
}

inline void expect_matches_reference(const Case& c, uint64_t seed, Context& context) {
  Problem problem(c, seed, context);
  const std::vector<float> expected = run_reference(problem);
  EXPECT_LE(test::largest_difference(run(problem, context), expected), tolerance(c)) << describe(c);
}

}  // namespace spb::ops
