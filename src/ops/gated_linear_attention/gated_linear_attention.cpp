#include "ops/gated_linear_attention/gated_linear_attention.h"

#include <algorithm>
#include <vector>

#include "core/tensor_check.h"
#include "core/transfer.h"
#include "ops/gated_linear_attention/gated_linear_attention_cpu.h"
#include "ops/gated_linear_attention/gated_linear_attention_cuda.h"
#include "ops/gated_linear_attention/gated_linear_attention_sequences.h"
#include "ops/gated_linear_attention/gated_linear_attention_shapes.h"

namespace spb::ops {
namespace {

constexpr const char* kName = "gated_linear_attention";

void check_contiguous(const char* argument, const ConstTensorView& tensor) {
  check(tensor.contiguous(),
        "{}: {}: expected contiguous rows, got a row stride of {} bytes for {}", kName, argument,
        tensor.row_stride_bytes(), tensor.row_bytes_used());
}

// The states of all sequences, whose lengths add up.
std::vector<ConstTensorView> states_of(const GatedLinearAttentionArgs& args) {
  if (args.sequences.empty()) return {args.state};
  check(!args.state.defined(), "{}: state: expected none beside those of the sequences", kName);
  const int64_t tokens = args.q.shape()[0];
  int64_t left = tokens;
  std::vector<ConstTensorView> states;
  for (const GatedLinearAttentionSequence& sequence : args.sequences) {
    check(sequence.tokens >= 0 && sequence.tokens <= left,
          "{}: sequences: expected lengths that add up to {} tokens, got {} where {} are left",
          kName, tokens, sequence.tokens, left);
    left -= sequence.tokens;
    states.push_back(sequence.state);
  }
  check(left == 0, "{}: sequences: expected lengths that add up to {} tokens, got {}", kName,
        tokens, tokens - left);
  return states;
}

// Of the right shape, apart from each other and from everything else. Sorted by address, so that
// large batches cost little.
void check_states(const GatedLinearAttentionArgs& args) {
  const Shape shape{args.k.shape()[1], args.k.shape()[2], args.v.shape()[2]};
  std::vector<ConstTensorView> states = states_of(args);
  for (const ConstTensorView& state : states) {
    check_tensor(kName, "state", state, DType::kF32, shape);
    check_contiguous("state", state);
  }
  std::sort(states.begin(), states.end(),
            [](const ConstTensorView& a, const ConstTensorView& b) { return a.data() < b.data(); });
  for (size_t i = 1; i < states.size(); ++i) {
    check(states[i].data() - states[i - 1].data() >= states[i].bytes(),
          "{}: sequences: expected a state of its own for each, got two that overlap", kName);
  }
  const auto check_apart = [&](const char* name, const ConstTensorView& tensor) {
    const auto ends_before = [&](const ConstTensorView& state) {
      return state.data() + state.bytes() <= tensor.data();
    };
    const auto state = std::partition_point(states.begin(), states.end(), ends_before);
    if (state != states.end()) check_no_overlap(kName, name, tensor, "state", *state);
  };
  check_apart("q", args.q);
  check_apart("k", args.k);
  check_apart("v", args.v);
  check_apart("g", args.g);
  check_apart("o", args.o);
}

int64_t count_boundaries(const GatedLinearAttentionArgs& args) {
  if (args.sequences.empty()) return args.q.shape()[0] / args.boundary_interval;
  int64_t count = 0;
  for (const GatedLinearAttentionSequence& sequence : args.sequences) {
    count += sequence.tokens / args.boundary_interval;
  }
  return count;
}

void check_boundaries(const GatedLinearAttentionArgs& args) {
  const TensorView& states = args.boundary_states;
  check(args.boundary_interval >= 0, "{}: boundary_interval: expected at least 0, got {}", kName,
        args.boundary_interval);
  if (args.boundary_interval == 0) {
    check(!states.defined(), "{}: boundary_states: expected none without an interval", kName);
    return;
  }
  const Shape shape{count_boundaries(args), args.k.shape()[1], args.k.shape()[2],
                    args.v.shape()[2]};
  if (shape[0] == 0 && !states.defined()) return;
  check_tensor(kName, "boundary_states", states, DType::kF32, shape);
  check_contiguous("boundary_states", states);
  const auto check_apart = [&](const char* name, const ConstTensorView& tensor) {
    check_no_overlap(kName, name, tensor, "boundary_states", states);
  };
  check_apart("q", args.q);
  check_apart("k", args.k);
  check_apart("v", args.v);
  check_apart("g", args.g);
  check_apart("o", args.o);
  for (const ConstTensorView& state : states_of(args)) check_apart("state", state);
}

void check_args(const Device& device, const GatedLinearAttentionArgs& args) {
  const Shape& q = args.q.shape();
  const Shape& k = args.k.shape();
  const Shape& v = args.v.shape();
  check_head_shapes(kName, q, k, v, args.scale);
  check_activation(kName, "q", args.q, device, q);
  check_tensor(kName, "k", args.k, args.q.dtype(), k);
  check_tensor(kName, "v", args.v, args.q.dtype(), v);
  check_activation(kName, "g", args.g, device, k);
  check_tensor(kName, "o", args.o, args.q.dtype(), Shape{q[0], q[1], v[2]});
  check(!device.is_cuda() || k[2] <= kMaxCudaKeyDim, "{}: k: expected key_dim <= {} on {}, got {}",
        kName, kMaxCudaKeyDim, to_string(device), k[2]);
  check_contiguous("q", args.q);
  check_contiguous("k", args.k);
  check_contiguous("v", args.v);
  check_contiguous("g", args.g);
  check_contiguous("o", args.o);
  check_same_or_no_overlap(kName, "q", args.q, "o", args.o);
  check_no_overlap(kName, "k", args.k, "o", args.o);
  check_no_overlap(kName, "v", args.v, "o", args.o);
  check_no_overlap(kName, "g", args.g, "o", args.o);
  check_states(args);
  check_boundaries(args);
}

void run_sequence(Context& context, const GatedLinearAttentionArgs& args) {
  const int64_t tokens = args.q.shape()[0];
  if (tokens == 0) return;
  const bool faster =
      tokens >= kChunkedTokens && args.q.shape()[1] <= kChunkedGroup * args.k.shape()[1];
  const bool chunked = args.form == GatedLinearAttentionForm::kChunked ||
                       (args.form == GatedLinearAttentionForm::kAutomatic && faster);
  if (chunked) {
    gated_linear_attention_chunked(context, args);
  } else {
    gated_linear_attention_recurrent(context, args);
  }
}

void gated_linear_attention_cpu(Context& context, const GatedLinearAttentionArgs& args) {
  const Arena::Scope scope(context.arena());
  GatedLinearAttentionArgs mapped = args;
  if (args.rectify) {
    mapped.q = rectified(context, args.q);
    mapped.k = rectified(context, args.k);
  }
  for_each_sequence(mapped,
                    [&](const GatedLinearAttentionArgs& one) { run_sequence(context, one); });
}

void run(Context& context, const GatedLinearAttentionArgs& args) {
  if (context.device().is_cuda()) return gated_linear_attention_cuda(context, args);
  gated_linear_attention_cpu(context, args);
}

}  // namespace

void gated_linear_attention(Context& context, const GatedLinearAttentionArgs& args) {
  check_args(context.device(), args);
  if (args.boundary_interval == 0) return run(context, args);
  for_each_interval(args, [&](const GatedLinearAttentionArgs& part, TensorView place) {
    run(context, part);
    if (place.defined()) copy_tensor(context, part.state, place);
  });
}

}  // namespace spb::ops
