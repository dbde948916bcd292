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

// Both sides of a comparison: host in f32, device in the cache's dtype.
struct Sides {
  Tensor host;
  Tensor device;
};

class SoftmaxAttentionCuda : public test::OnCuda {
 protected:
  // Positions 0 .. count of k and v written to fresh caches on both sides.
  void fill(Context& cpu, const Case& c, DType cache, Sides& keys, Sides& values,
            Sides (&scales)[2], DType dtype) {
    const Shape shape{c.kv_heads, c.capacity, c.dim};
    const bool codes = cache == DType::kI8;
    for (Sides* side : {&keys, &values}) {
      side->host = Tensor(codes ? DType::kI8 : DType::kF32, shape);
      side->device = Tensor(cache, shape, context().device());
    }
    for (Sides& side : scales) {
      if (!codes) continue;
      side.host = Tensor(DType::kF32, Shape{c.kv_heads, c.capacity});
      side.device = Tensor(DType::kF32, side.host.shape(), context().device());
    }
    for (int64_t at = 0; at < c.before + c.tokens;) {
      const int64_t count = std::min(c.capacity, c.before + c.tokens - at);
      const Tensor k = test::random_tensor(rng_, Shape{count, c.kv_heads, c.dim});
      const Tensor v = test::random_tensor(rng_, k.shape());
      append_to_cache(cpu, {k, v, keys.host, values.host, at, scales[0].host, scales[1].host});
      append_to_cache(context(),
                      {test::put(context(), k, dtype), test::put(context(), v, dtype), keys.device,
                       values.device, at, scales[0].device, scales[1].device});
      at += count;
    }
  }

  double error(const Case& c, DType cache, DType dtype) {
    Context cpu(1);
    Sides keys, values, scales[2];
    fill(cpu, c, cache, keys, values, scales, dtype);
    SoftmaxAttentionArgs host;
    SoftmaxAttentionArgs device;
    const Tensor q = test::random_tensor(rng_, Shape{c.tokens, c.heads, c.dim}, 2.0f);
    const Tensor q_device = test::put(context(), q, dtype);
    Tensor expected(DType::kF32, q.shape());
    Tensor o = test::poisoned(context(), q.shape(), dtype);
    const Tensor sink_keys = test::random_tensor(rng_, Shape{c.kv_heads, c.sinks, c.dim});
    const Tensor sink_values = test::random_tensor(rng_, sink_keys.shape());
    const Tensor sink_keys_device = test::put(context(), sink_keys, cache);
    const Tensor sink_values_device = test::put(context(), sink_values, cache);
    host.q = q, host.o = expected, host.keys = keys.host, host.values = values.host;
    device.q = q_device, device.o = o, device.keys = keys.device, device.values = values.device;
    for (SoftmaxAttentionArgs* args : {&host, &device}) {
      args->first_position = c.before;
      args->window_size = c.window;
      args->scale = 0.125f;
    }
    host.key_scales = scales[0].host, host.value_scales = scales[1].host;
    device.key_scales = scales[0].device, device.value_scales = scales[1].device;
    if (c.sinks > 0 && cache != DType::kI8) {
      host.sink_keys = sink_keys, host.sink_values = sink_values;
      device.sink_keys = sink_keys_device, device.sink_values = sink_values_device;
    }
    softmax_attention_reference(host);
    softmax_attention(context(), device);
    return test::relative_error(test::take(context(), o), expected);
  }

  Rng rng_{61};
};

INSTANTIATE_TEST_SUITE_P(Caches, SoftmaxAttentionCuda,
                         testing::Values(DType::kF32, DType::kBF16, DType::kI8), test::dtype_name);

TEST_P(SoftmaxAttentionCuda, AgreesWithTheReference) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const Case& c : kCases) {
      const double bound = dtype == DType::kF32 ? 2e-6 : 6e-3;
      EXPECT_LE(error(c, GetParam(), dtype), bound)
          << c.tokens << " tokens after " << c.before << ", window " << c.window << ", dim "
          << c.dim << ", " << name(dtype);
    }
  }
}

}  // namespace
}  // namespace spb::ops
