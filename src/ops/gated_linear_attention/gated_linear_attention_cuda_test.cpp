// gated_linear_attention on a CUDA device against the reference: any length, batch and gate.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/test_cuda.h"
#include "core/test_operators.h"
#include "ops/gated_linear_attention/gated_linear_attention.h"

namespace spb::ops {
namespace {

using Form = GatedLinearAttentionForm;
using Gate = std::function<float()>;

struct Case {
  std::vector<int64_t> lengths;
  int64_t kv_heads = 1;
  int64_t group = 1;
  int64_t key_dim = 64;
  int64_t value_dim = 64;
};

std::string describe(const Case& c, DType dtype, DType gate_dtype) {
  return fmt::format("L {} kv {} group {} K {} V {} {} gates {}", fmt::join(c.lengths, "+"),
                     c.kv_heads, c.group, c.key_dim, c.value_dim, name(dtype), name(gate_dtype));
}

struct Result {
  Tensor o;
  std::vector<Tensor> states;
};

// A batch on the host, whose numbers bf16 holds exactly (gates too).
struct Problem {
  Case c;
  Tensor q, k, v, g;
  std::vector<Tensor> states;
  float scale;
  bool rectify = false;

  Problem(const Case& case_, uint64_t seed, Gate gate = {})
      : c(case_), scale(1.0f / std::sqrt(static_cast<float>(c.key_dim))) {
    int64_t tokens = 0;
    for (const int64_t length : c.lengths) tokens += length;
    Rng rng(seed);
    q = test::random_tensor(rng, Shape{tokens, c.kv_heads * c.group, c.key_dim});
    k = test::random_tensor(rng, Shape{tokens, c.kv_heads, c.key_dim});
    v = test::random_tensor(rng, Shape{tokens, c.kv_heads, c.value_dim});
    g = Tensor(DType::kF32, k.shape());
    if (!gate) gate = [&] { return -rng.uniform(0.0f, 0.2f); };
    std::generate_n(g.as<float>(), g.shape().elements(), [&] { return to_float(to_bf16(gate())); });
    for (size_t i = 0; i < c.lengths.size(); ++i) {
      states.push_back(test::random_tensor(rng, Shape{c.kv_heads, c.key_dim, c.value_dim}));
    }
  }

  // `last` sequences from `first` on share a call; the whole batch unless told otherwise.
  Result run(Context& context, DType dtype, DType gate_dtype, Form form, bool in_place = false) {
    const Tensor device_q = test::put(context, q, dtype);
    const Tensor device_k = test::put(context, k, dtype);
    const Tensor device_v = test::put(context, v, dtype);
    const Tensor device_g = test::put(context, g, gate_dtype);
    Tensor device_o =
        in_place ? test::put(context, q, dtype)
                 : test::poisoned(context, Shape{q.shape()[0], q.shape()[1], c.value_dim}, dtype);
    std::vector<Tensor> device_states;
    std::vector<GatedLinearAttentionSequence> sequences;
    for (size_t i = 0; i < states.size(); ++i) {
      device_states.push_back(test::put(context, states[i]));
      sequences.push_back({c.lengths[i], device_states.back()});
    }
    GatedLinearAttentionArgs args{device_q, device_k, device_v, device_g,
                                  {},       device_o, scale,    form};
    if (in_place) args.q = device_o;
    args.sequences = sequences;
    args.rectify = rectify;
    gated_linear_attention(context, args);
    Result result{test::take(context, device_o), {}};
    for (const Tensor& state : device_states) result.states.push_back(test::take(context, state));
    return result;
  }

  Result run_reference() {
    Result result{Tensor(DType::kF32, Shape{q.shape()[0], q.shape()[1], c.value_dim}), {}};
    std::vector<GatedLinearAttentionSequence> sequences;
    for (size_t i = 0; i < states.size(); ++i) {
      result.states.emplace_back(DType::kF32, states[i].shape());
      std::copy_n(states[i].as<float>(), states[i].shape().elements(),
                  result.states.back().as<float>());
    }
    for (size_t i = 0; i < states.size(); ++i) {
      sequences.push_back({c.lengths[i], result.states[i]});
    }
    GatedLinearAttentionArgs args{q, k, v, g, {}, result.o, scale, Form::kAutomatic};
    args.sequences = sequences;
    args.rectify = rectify;
    gated_linear_attention_reference(args);
    return result;
  }
};

// Stored in bf16, or products of bf16; else sums of f32 along a sequence.
double limit(DType dtype) { return dtype == DType::kBF16 ? 5e-3 : 1e-5; }

void expect_close(const Result& got, const Result& expected, double tolerance,
                  const std::string& what) {
  EXPECT_LE(test::relative_error(got.o, expected.o), tolerance) << what << " o";
  for (size_t i = 0; i < expected.states.size(); ++i) {
    EXPECT_LE(test::relative_error(got.states[i], expected.states[i]), tolerance)
        << what << " state " << i;
  }
}

void expect_same(const Result& a, const Result& b, const std::string& what) {
  EXPECT_TRUE(test::same_bits(a.o, b.o)) << what;
  for (size_t i = 0; i < a.states.size(); ++i) {
    EXPECT_TRUE(test::same_bits(a.states[i], b.states[i])) << what << " state " << i;
  }
}

class GatedLinearAttentionCuda : public test::OnCuda {
 protected:
  void expect_matches_reference(Problem& problem, const std::string& gates = {}) {
    const Result expected = problem.run_reference();
    for (const DType gate_dtype : {DType::kF32, DType::kBF16}) {
      for (const Form form : {Form::kRecurrent, Form::kChunked, Form::kAutomatic}) {
        if (form != Form::kAutomatic && gate_dtype == DType::kBF16) continue;
        expect_close(problem.run(context(), GetParam(), gate_dtype, form), expected,
                     limit(GetParam()),
                     fmt::format("{} form {} {}", describe(problem.c, GetParam(), gate_dtype),
                                 static_cast<int>(form), gates));
      }
    }
  }

  void expect_rectifies(Problem problem, Form form) {
    const std::string what = describe(problem.c, GetParam(), DType::kF32);
    problem.rectify = true;
    const Result got = problem.run(context(), GetParam(), DType::kF32, form);
    expect_close(got, problem.run_reference(), limit(GetParam()), what);
    expect_same(problem.run(context(), GetParam(), DType::kF32, form, true), got,
                what + " in place");
    problem.rectify = false;
    for (Tensor* tensor : {&problem.q, &problem.k}) {
      float* x = tensor->as<float>();
      std::transform(x, x + tensor->shape().elements(), x,
                     [](float z) { return std::max(z, 0.0f); });
    }
    expect_same(problem.run(context(), GetParam(), DType::kF32, form), got, what);
  }
};

INSTANTIATE_TEST_SUITE_P(Cuda, GatedLinearAttentionCuda, test::activation_dtypes(),
                         test::dtype_name);

TEST_P(GatedLinearAttentionCuda, AnyLength) {
  for (const int64_t dim : {64, 128}) {
    for (const int64_t tokens : {1, 15, 16, 17, 63, 64, 65, 129, 300}) {
      for (const int64_t group : {1, 2, 7}) {
        Problem problem({{tokens}, 2, group, dim, dim}, 1 + static_cast<uint64_t>(tokens));
        expect_matches_reference(problem);
      }
    }
  }
}

TEST_P(GatedLinearAttentionCuda, LongSequences) {
  for (const int64_t dim : {64, 128}) {
    for (const int64_t tokens : {4095, 4097}) {
      Problem problem({{tokens}, 2, 2, dim, dim}, 3);
      expect_matches_reference(problem);
    }
  }
  Problem segments_of_many_chunks({{2500}, 7, 1, 64, 64}, 4);
  expect_matches_reference(segments_of_many_chunks);
}

TEST_P(GatedLinearAttentionCuda, AnyWidth) {
  Rng rng(5);
  for (const int64_t key_dim : {1, 7, 16, 33, 64, 100, 128, 256}) {
    for (const int64_t value_dim : {1, 8, 33, 64, 128, 200}) {
      Problem problem(
          {{1 + rng.below(40)}, 1 + rng.below(3), 1 + rng.below(17), key_dim, value_dim}, 6);
      expect_matches_reference(problem);
    }
  }
}

TEST_P(GatedLinearAttentionCuda, Batches) {
  Problem mixed({{0, 1, 100, 5000, 0, 16, 17}, 2, 7, 128, 128}, 7);
  expect_matches_reference(mixed);
  Problem many({std::vector<int64_t>(150, 1), 2, 3, 64, 64}, 8);  // more than one launch
  expect_matches_reference(many);
  Problem many_prompts({std::vector<int64_t>(70, 40), 1, 2, 64, 64}, 9);
  expect_matches_reference(many_prompts);
  Problem none({{0, 0}, 2, 2, 64, 64}, 10);
  expect_matches_reference(none);
}

TEST_P(GatedLinearAttentionCuda, GatesOfAnyStrength) {
  Rng rng(11);
  const auto tied = [&](float z) {
    const double x = z * rng.normal();
    return static_cast<float>(-std::max(x, 0.0) - std::log1p(std::exp(-std::fabs(x))));
  };
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<std::pair<std::string, Gate>> gates = {
      {"0", [] { return 0.0f; }},
      {"-1e-7", [] { return -1e-7f; }},
      {"weak", [&] { return -rng.uniform(0.0f, 0.02f); }},
      {"up to 2", [&] { return -rng.uniform(0.0f, 2.0f); }},
      {"up to 5", [&] { return -rng.uniform(0.0f, 5.0f); }},
      {"up to 20", [&] { return -rng.uniform(0.0f, 20.0f); }},
      {"tied, 1", [&] { return tied(1); }},
      {"tied, 10", [&] { return tied(10); }},
      {"tied, 100", [&] { return tied(100); }},
      {"a reset now and then", [&] { return rng.below(20) == 0 ? -1e9f : -1e-3f; }},
      {"resets mostly", [&] { return rng.below(4) != 0 ? -87.0f : -0.01f; }},
      {"-2.5", [] { return -2.5f; }},
      {"-2.6", [] { return -2.6f; }},
      {"-88", [] { return -88.0f; }},
      {"-infinity", [] { return -kInfinity; }},
  };
  for (const auto& [what, gate] : gates) {
    for (const int64_t dim : {64, 128}) {
      Problem problem({{200, 70}, 2, 3, dim, dim}, 12, gate);
      expect_matches_reference(problem, what);
    }
  }
}

// No cancellation hides anything: tokens that remember next to nothing keep their precision.
TEST_P(GatedLinearAttentionCuda, EveryRowKeepsItsPrecision) {
  Rng rng(13);
  for (const float strength : {0.1f, 3.0f, 30.0f}) {
    Problem problem({{150}, 1, 2, 64, 64}, 14, [&] { return -rng.uniform(0.0f, strength); });
    for (Tensor* tensor : {&problem.q, &problem.k, &problem.v, &problem.states[0]}) {
      for (int64_t i = 0; i < tensor->shape().elements(); ++i) {
        tensor->as<float>()[i] = to_float(to_bf16(std::exp(rng.uniform(-3.0f, 3.0f))));
      }
    }
    const Result got = problem.run(context(), GetParam(), DType::kF32, Form::kChunked);
    const double tolerance = GetParam() == DType::kBF16 ? 1.5e-2 : 1e-5;
    EXPECT_LE(test::largest_row_error(got.o, problem.run_reference().o), tolerance) << strength;
  }
}

TEST_P(GatedLinearAttentionCuda, ASequenceGivesTheSameBitsAloneAndInABatch) {
  const std::vector<int64_t> lengths = {1, 700, 3, 64, 200};
  for (const int64_t dim : {64, 128}) {
    Problem batch({lengths, 2, 2, dim, dim}, 15);
    const Result together = batch.run(context(), GetParam(), DType::kF32, Form::kAutomatic);
    int64_t first = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      Problem alone({{lengths[i]}, 2, 2, dim, dim}, 16);
      const auto take = [&](Tensor& from, Tensor& to) {
        const int64_t width = from.shape()[1] * from.shape()[2];
        std::copy_n(from.as<float>() + first * width, lengths[i] * width, to.as<float>());
      };
      take(batch.q, alone.q);
      take(batch.k, alone.k);
      take(batch.v, alone.v);
      take(batch.g, alone.g);
      std::copy_n(batch.states[i].as<float>(), batch.states[i].shape().elements(),
                  alone.states[0].as<float>());
      const Result got = alone.run(context(), GetParam(), DType::kF32, Form::kAutomatic);
      const int64_t width = 4 * dim;
      EXPECT_EQ(std::memcmp(got.o.as<float>(), together.o.as<float>() + first * width,
                            static_cast<size_t>(lengths[i] * width) * sizeof(float)),
                0);
      EXPECT_TRUE(test::same_bits(got.states[0], together.states[i]));
      first += lengths[i];
    }
  }
}

TEST_P(GatedLinearAttentionCuda, TheSameBitsAgainAndInPlace) {
  for (const int64_t dim : {64, 128}) {
    Problem problem({{3, 1000, 1}, 2, 7, dim, dim}, 17);
    const Result expected = problem.run(context(), GetParam(), DType::kF32, Form::kAutomatic);
    expect_same(problem.run(context(), GetParam(), DType::kF32, Form::kAutomatic), expected,
                "again");
    expect_same(problem.run(context(), GetParam(), DType::kF32, Form::kAutomatic, true), expected,
                "in place");
  }
}

// As from inputs that were mapped before, bit by bit; also where gates are too steep for one
// anchor.
TEST_P(GatedLinearAttentionCuda, RectifiesWhatItReads) {
  const std::vector<Gate> gates = {{}, [] { return -20.0f; }};
  for (const int64_t dim : {64, 128, 40}) {
    for (const Gate& gate : gates) {
      expect_rectifies(Problem({{1, 200, 5}, 2, 7, dim, dim}, 20, gate), Form::kRecurrent);
      expect_rectifies(Problem({{1, 200, 5}, 2, 7, dim, dim}, 21, gate), Form::kChunked);
      expect_rectifies(Problem({{1, 200, 5}, 2, 7, dim, dim}, 22, gate), Form::kAutomatic);
    }
  }
}

TEST_P(GatedLinearAttentionCuda, PrefillThenDecodeEqualsPrefillOfAll) {
  Problem problem({{200}, 2, 2, 64, 64}, 18);
  const Result expected = problem.run_reference();
  for (const int64_t prefix : {1, 64, 100, 199}) {
    const Tensor q = test::put(context(), problem.q, GetParam());
    const Tensor k = test::put(context(), problem.k, GetParam());
    const Tensor v = test::put(context(), problem.v, GetParam());
    const Tensor g = test::put(context(), problem.g);
    Tensor o = test::poisoned(context(), problem.q.shape(), GetParam());
    Tensor state = test::put(context(), problem.states[0]);
    const auto step = [&](int64_t first, int64_t count) {
      const auto part = [&](const ConstTensorView& tensor) {
        const Shape& shape = tensor.shape();
        return ConstTensorView(tensor.row(first * shape[1]), tensor.dtype(),
                               Shape{count, shape[1], shape[2]});
      };
      const TensorView out(o.view().row(first * 4), GetParam(), Shape{count, 4, 64});
      gated_linear_attention(context(), {part(q), part(k), part(v), part(g), state, out,
                                         problem.scale, Form::kAutomatic});
    };
    step(0, prefix);
    for (int64_t i = prefix; i < 200; ++i) step(i, 1);
    Result got{test::take(context(), o), {}};
    got.states.push_back(test::take(context(), state));
    expect_close(got, expected, limit(GetParam()), fmt::format("prefix {}", prefix));
  }
}

// A token that is not a number spoils itself and what follows; before it at most its sub-chunk.
TEST_P(GatedLinearAttentionCuda, NanSpreadsForward) {
  for (Tensor Problem::*which : {&Problem::q, &Problem::k, &Problem::v, &Problem::g}) {
    for (const int64_t token : {0, 40, 64, 299}) {
      Problem problem({{300}, 1, 2, 64, 64}, 19);
      problem.rectify = token % 8 == 0;  // NaN stays NaN
      const Result clean = problem.run(context(), GetParam(), DType::kF32, Form::kChunked);
      Tensor& tensor = problem.*which;
      const int64_t width = tensor.shape().elements() / 300;
      std::fill_n(tensor.as<float>() + token * width, width, test::kPoison);
      const Result got = problem.run(context(), GetParam(), DType::kF32, Form::kChunked);
      const int64_t row = 2 * 64;
      EXPECT_EQ(std::memcmp(got.o.as<float>(), clean.o.as<float>(),
                            static_cast<size_t>(token / 16 * 16 * row) * sizeof(float)),
                0);
      EXPECT_TRUE(std::isnan(got.o.as<float>()[token * row]));
    }
  }
}

}  // namespace
}  // namespace spb::ops
