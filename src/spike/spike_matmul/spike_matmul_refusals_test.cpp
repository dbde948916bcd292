// Arguments that spike_matmul and its preparation refuse, and how they say so.
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "core/error.h"
#include "core/test_errors.h"
#include "spike/spike_matmul/spike_matmul.h"
#include "spike/spike_matmul/spike_matmul_problem.h"

namespace spb::spike {
namespace {

using spb::test::expect_error;
using spb::test::StridedMatrix;
using test::Codes;
using test::Counts;
using test::make_counts;
using test::random_codes;
using test::random_counts;

TEST(SpikeMatmul, PreparationRefusesWrongWeights) {
  Rng rng(14);
  Context context(1);
  const auto refuse = [&](const Codes& w, ErrorKind kind, const std::string& words) {
    expect_error(kind, words, [&] { prepare_spike_weight(context, w.source()); });
  };
  const auto usage = ErrorKind::kUsage;
  expect_error(usage, "expected a matrix", [&] { prepare_spike_weight(context, {}); });
  refuse(random_codes(rng, 4, 100), usage, "divisible by the group size 128, got 100");
  Codes w = random_codes(rng, 4, 256);
  w.scales = Tensor(DType::kF32, Shape{4, 1});
  refuse(w, usage, "scales: expected f32 [4, 2], got f32 [4, 1]");
  w = random_codes(rng, 4, 256);
  w.scales.as<float>()[5] = std::nanf("");
  refuse(w, ErrorKind::kData, "row 2, group 1: expected a finite number, got nan");
  w = random_codes(rng, 4, 256);
  for (const CodeExcess bad :
       {CodeExcess{-1, 0, 9}, CodeExcess{4, 0, 9}, CodeExcess{0, 256, 9}, CodeExcess{0, -1, 9}}) {
    w.residual = {bad};
    refuse(w, usage, "residual: expected places inside [4, 256]");
  }
  w.residual = {{1, 5, 9}, {1, 5, 9}};
  refuse(w, usage, "out of order");
  w.residual = {{1, 5, 9}, {0, 6, 9}};
  refuse(w, usage, "out of order");
  w.residual = {{1, 5, std::numeric_limits<int32_t>::min()}};
  refuse(w, ErrorKind::kData, "row 1, column 5: expected |code| up to");
}

TEST(SpikeMatmul, RefusesWrongCountsAndTargets) {
  Rng rng(15);
  Context context(1);
  const Codes w = random_codes(rng, 20, 256);
  const SpikeWeight plain = prepare_spike_weight(context, w.source());
  const SpikeWeight full = prepare_spike_weight(context, w.source(), {.channel_major = true});
  Counts s = make_counts(rng, random_counts(rng, 2, 256, 0.3));
  const StridedMatrix y(2, 20);
  SpikeMatmulTarget target{&plain, {}, y.view()};
  SpikePath path = SpikePath::kAutomatic;
  const auto refuse = [&](const std::string& words) {
    expect_error(ErrorKind::kUsage, words, [&] {
      spike_matmul(context, {&s.view, {&target, 1}, path});
    });
  };
  target.weight = nullptr;
  refuse("target 0: expected a prepared weight, got none");
  target = {&plain, {}, StridedMatrix(2, 21).view()};
  refuse("y: expected f32 [2, 20], got f32 [2, 21]");
  target = {&plain, s.thresholds, y.view()};
  refuse("bias: expected f32 [20], got f32 [2]");
  target = {&plain, {}, {s.core.view().data(), DType::kF32, Shape{2, 20}}};
  refuse("y");
  target = {&plain, {}, y.view()};
  path = SpikePath::kEvents;
  refuse("expected a channel-major copy for events, got none");
  target.weight = &full;
  s.view.active[3] = s.view.active[2];
  refuse("expected ascending channels");
  s.view.active[3] = 256;
  refuse("expected channels below 256, got 256");
  s.view.active_begin[1] = 1 << 30;
  refuse("active_begin: row 0");
  s.view.active_begin.clear();
  refuse("active_begin: expected 3 entries for events, got 0");
  path = SpikePath::kAutomatic;
  for (const Burst bad : {Burst{2, 0, 1}, Burst{-1, 0, 1}, Burst{0, 256, 1}, Burst{0, -1, 1}}) {
    s.view.bursts = {bad};
    refuse("bursts: expected places inside [2, 256]");
  }
  s.view.bursts = {{1, 0, 1}, {0, 9, 1}};
  refuse("out of order");
  s.view.bursts = {{1, 9, std::numeric_limits<int32_t>::max()}};
  refuse("row 1, channel 9: expected |count| up to");
  s = make_counts(rng, random_counts(rng, 2, 128, 0.3));
  refuse("expected counts with 256 channels, got 128");
  expect_error(ErrorKind::kUsage, "counts: expected a core [M, K], got none", [&] {
    spike_matmul(context, {nullptr, {&target, 1}});
  });
}

}  // namespace
}  // namespace spb::spike
