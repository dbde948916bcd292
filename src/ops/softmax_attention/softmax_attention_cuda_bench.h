// The part of ops/cuda_bench.cpp about attention and its caches. Not part of the library.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/int8_row.h"
#include "ops/cuda_bench_shapes.h"
#include "ops/softmax_attention/softmax_attention.h"

namespace spb::ops {

// Keys and values of bf16, or of 8-bit codes with their scales.
struct Cache {
  Tensor keys, values, key_scales, value_scales;

  Cache(CudaBench& bench, int64_t capacity, DType dtype) {
    const Shape shape{kKvHeads, capacity, kDim};
    for (auto [codes, scales] : {std::pair(&keys, &key_scales), {&values, &value_scales}}) {
      if (dtype != DType::kI8) {
        *codes = bench.random(shape, dtype);
        continue;
      }
      const Tensor rows = random_rows(bench.rng(), DType::kF32, shape, 0.5f);
      Tensor host(DType::kI8, shape);
      Tensor host_scales(DType::kF32, Shape{kKvHeads, capacity});
      for (int64_t i = 0; i < shape.rows(); ++i) {
        host_scales.as<float>()[i] = quantize_int8_row("bench", i, rows.view().row_as<float>(i),
                                                       kDim, host.view().row_as<int8_t>(i));
      }
      *codes = bench.on_device(host);
      *scales = bench.on_device(host_scales);
    }
  }
};

// Some queries of one group of heads.
inline void verify_attention(CudaBench& bench, const std::string& what,
                             const SoftmaxAttentionArgs& args, const Cache& cache) {
  Context& context = bench.context();
  const int64_t capacity = cache.keys.shape()[1];
  const auto one_head = [&](const Tensor& from) {
    return part_on_host(context, from, kVerifiedHead * capacity, capacity,
                        Shape{1, capacity, kDim});
  };
  const auto scales_of = [&](const Tensor& from) {
    return part_on_host(context, from, kVerifiedHead, 1, Shape{1, capacity});
  };
  const Tensor keys = one_head(cache.keys), values = one_head(cache.values);
  const Tensor key_scales = scales_of(cache.key_scales);
  const Tensor value_scales = scales_of(cache.value_scales);
  for (const int64_t token : spread(args.q.shape()[0], 8)) {
    std::vector<int64_t> rows;
    for (int64_t h = 0; h < kGroup; ++h) {
      rows.push_back(token * kHeads + kVerifiedHead * kGroup + h);
    }
    const Tensor q = take_rows(context, args.q, rows);
    Tensor expected(DType::kF32, q.shape());
    SoftmaxAttentionArgs one = args;
    one.q = q.view().reshaped(Shape{1, kGroup, kDim});
    one.o = expected.view().reshaped(one.q.shape());
    one.keys = keys, one.values = values;
    if (key_scales.view().defined()) one.key_scales = key_scales, one.value_scales = value_scales;
    one.first_position = args.first_position + token;
    softmax_attention_reference(one);
    verify(fmt::format("{}, token {}", what, token), take_rows(context, args.o, rows), expected,
           6e-3);
  }
}

inline void attention(CudaBench& bench, int64_t tokens, int64_t position, int64_t window,
                      DType dtype = kActivations) {
  const int64_t capacity = window > 0 ? window + tokens - 1 : position + tokens;
  std::vector<Tensor> q, o;
  std::vector<Cache> caches;
  for (int i = 0; i < kSets; ++i) {
    q.push_back(bench.random(Shape{tokens, kHeads, kDim}, kActivations));
    o.emplace_back(kActivations, q[0].shape(), bench.context().device());
    caches.emplace_back(bench, capacity, dtype);
  }
  const auto args_of = [&](int i) {
    const auto set = static_cast<size_t>(i);
    SoftmaxAttentionArgs args;
    args.q = q[set], args.o = o[set];
    args.keys = caches[set].keys, args.values = caches[set].values;
    if (dtype == DType::kI8) {
      args.key_scales = caches[set].key_scales, args.value_scales = caches[set].value_scales;
    }
    args.first_position = position, args.window_size = window, args.scale = kScale;
    return args;
  };
  const auto call = [&](int i) { softmax_attention(bench.context(), args_of(i)); };
  const std::string what = fmt::format("softmax_attention {} tokens at {}, window {}{}", tokens,
                                       position, window, dtype == DType::kI8 ? ", int8 cache" : "");
  call(0);
  verify_attention(bench, what, args_of(0), caches[0]);
  double pairs = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t seen = position + i + 1;
    pairs += static_cast<double>(window > 0 ? std::min(window, seen) : seen);
  }
  const auto keys_read = static_cast<double>(
      std::min(capacity, window > 0 ? std::min(window, position + 1) + tokens - 1 : capacity));
  const double row = dtype == DType::kI8 ? kDim + 4 : 2 * kDim;  // bytes of a key
  bench.time(what,
             {4.0 * static_cast<double>(tokens * kHeads * kDim) + 2 * keys_read * kKvHeads * row,
              4.0 * pairs * kHeads * kDim},
             call);
}

inline void append(CudaBench& bench, int64_t tokens, DType dtype) {
  Context& context = bench.context();
  const int64_t capacity = kWindow + tokens - 1;
  const int64_t position = 16384;
  std::vector<Tensor> k, v;
  std::vector<Cache> caches;
  for (int i = 0; i < kSets; ++i) {
    for (auto* rows : {&k, &v}) {
      rows->push_back(bench.random(Shape{tokens, kKvHeads, kDim}, kActivations));
    }
    caches.emplace_back(bench, capacity, dtype);
  }
  const auto call = [&](int i) {
    const auto set = static_cast<size_t>(i);
    AppendToCacheArgs args{k[set], v[set], caches[set].keys, caches[set].values, position};
    if (dtype == DType::kI8) {
      args.key_scales = caches[set].key_scales, args.value_scales = caches[set].value_scales;
    }
    append_to_cache(context, args);
  };
  const std::string what = fmt::format("append_to_cache {} tokens, {}", tokens, name(dtype));
  call(0);
  for (const int64_t token : spread(tokens, 16)) {
    const int64_t slot = kVerifiedHead * capacity + (position + token) % capacity;
    const Tensor x = take_rows(context, v[0], {token * kKvHeads + kVerifiedHead});
    const Tensor got = part_on_host(context, caches[0].values, slot, 1, Shape{1, kDim});
    Tensor expected(dtype, got.shape());
    if (dtype == DType::kI8) {
      quantize_int8_row("bench", 0, x.as<float>(), kDim, expected.as<int8_t>());
    } else {
      quantize_row(dtype, x.as<float>(), expected.view().data(), kDim);
    }
    check(std::memcmp(got.view().data(), expected.view().data(),
                      static_cast<size_t>(got.view().bytes())) == 0,
          "{}, token {}: expected the values that the reference stores, got others", what, token);
  }
  const double row = 2 * kDim + (dtype == DType::kI8 ? kDim + 4 : 2 * kDim);
  bench.time(what, {2.0 * static_cast<double>(tokens * kKvHeads) * row}, call);
}

}  // namespace spb::ops
