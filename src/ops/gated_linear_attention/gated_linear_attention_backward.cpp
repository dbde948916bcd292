#include "ops/gated_linear_attention/gated_linear_attention_backward.h"

#include <algorithm>
#include <vector>

#include "core/tensor_check.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward_cpu.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward_cuda.h"
#include "ops/gated_linear_attention/gated_linear_attention_backward_sequences.h"
#include "ops/gated_linear_attention/gated_linear_attention_shapes.h"

namespace spb::ops {
namespace {

constexpr const char* kName = "gated_linear_attention_backward";

// All tensors of a call, checked one by one as they are added and against each other at the end.
class Arguments {
 public:
  void add(const char* name, const ConstTensorView& tensor, bool written) {
    check(tensor.contiguous(),
          "{}: {}: expected contiguous rows, got a row stride of {} bytes for {}", kName, name,
          tensor.row_stride_bytes(), tensor.row_bytes_used());
    if (tensor.bytes() > 0) all_.push_back({name, tensor, written});
  }

  // In the order of addresses, so that large batches cost little: a tensor can only meet those that
  // reach furthest among the ones before it.
  void check_apart() {
    std::sort(all_.begin(), all_.end(), [](const Argument& a, const Argument& b) {
      return a.tensor.data() < b.tensor.data();
    });
    const Argument* furthest = nullptr;
    const Argument* furthest_written = nullptr;
    for (const Argument& argument : all_) {
      const Argument* other = argument.written ? furthest : furthest_written;
      if (other != nullptr) {
        check_no_overlap(kName, other->name, other->tensor, argument.name, argument.tensor);
      }
      if (furthest == nullptr || furthest->end() < argument.end()) furthest = &argument;
      if (!argument.written) continue;
      if (furthest_written == nullptr || furthest_written->end() < argument.end()) {
        furthest_written = &argument;
      }
    }
  }

 private:
  struct Argument {
    const char* name;
    ConstTensorView tensor;
    bool written;

    const std::byte* end() const { return tensor.data() + tensor.bytes(); }
  };
  std::vector<Argument> all_;
};

void add_states(const GatedLinearAttentionBackwardSequence& sequence, const Shape& shape,
                Arguments& arguments) {
  check_tensor(kName, "state", sequence.state, DType::kF32, shape);
  arguments.add("state", sequence.state, false);
  if (sequence.d_final_state.defined()) {
    check_tensor(kName, "d_final_state", sequence.d_final_state, DType::kF32, shape);
    arguments.add("d_final_state", sequence.d_final_state, false);
  }
  if (sequence.d_state.defined()) {
    check_tensor(kName, "d_state", sequence.d_state, DType::kF32, shape);
    arguments.add("d_state", sequence.d_state, true);
  }
}

void add_sequences(const GatedLinearAttentionBackwardArgs& args, Arguments& arguments) {
  const int64_t tokens = args.q.shape()[0];
  const Shape shape{args.k.shape()[1], args.k.shape()[2], args.v.shape()[2]};
  if (args.sequences.empty()) {
    return add_states({tokens, args.state, args.d_final_state, args.d_state}, shape, arguments);
  }
  check(!args.state.defined() && !args.d_final_state.defined() && !args.d_state.defined(),
        "{}: state: expected none beside those of the sequences", kName);
  int64_t left = tokens;
  for (const GatedLinearAttentionBackwardSequence& sequence : args.sequences) {
    check(sequence.tokens >= 0 && sequence.tokens <= left,
          "{}: sequences: expected lengths that add up to {} tokens, got {} where {} are left",
          kName, tokens, sequence.tokens, left);
    left -= sequence.tokens;
    add_states(sequence, shape, arguments);
  }
  check(left == 0, "{}: sequences: expected lengths that add up to {} tokens, got {}", kName,
        tokens, tokens - left);
}

void check_shapes(const Device& device, const GatedLinearAttentionBackwardArgs& args) {
  const Shape& q = args.q.shape();
  const Shape& k = args.k.shape();
  const Shape& v = args.v.shape();
  check_head_shapes(kName, q, k, v, args.scale);
  check(!device.is_cuda() || std::max(k[2], v[2]) <= kMaxCudaBackwardDim,
        "{}: k, v: expected key_dim and value_dim <= {} on {}, got {} and {}", kName,
        kMaxCudaBackwardDim, to_string(device), k[2], v[2]);
}

void check_args(const Device& device, const GatedLinearAttentionBackwardArgs& args) {
  check_shapes(device, args);
  const DType dtype = args.q.dtype();
  const Shape& q = args.q.shape();
  const Shape& k = args.k.shape();
  const Shape& v = args.v.shape();
  const Shape o{q[0], q[1], v[2]};
  check_activation(kName, "q", args.q, device, q);
  check_tensor(kName, "k", args.k, dtype, k);
  check_tensor(kName, "v", args.v, dtype, v);
  check_activation(kName, "g", args.g, device, k);
  check_tensor(kName, "d_o", args.d_o, dtype, o);
  check_tensor(kName, "d_q", args.d_q, dtype, q);
  check_tensor(kName, "d_k", args.d_k, dtype, k);
  check_tensor(kName, "d_v", args.d_v, dtype, v);
  check_tensor(kName, "d_g", args.d_g, DType::kF32, k);
  Arguments arguments;
  arguments.add("q", args.q, false);
  arguments.add("k", args.k, false);
  arguments.add("v", args.v, false);
  arguments.add("g", args.g, false);
  arguments.add("d_o", args.d_o, false);
  arguments.add("d_q", args.d_q, true);
  arguments.add("d_k", args.d_k, true);
  arguments.add("d_v", args.d_v, true);
  arguments.add("d_g", args.d_g, true);
  add_sequences(args, arguments);
  arguments.check_apart();
}

}  // namespace

void gated_linear_attention_backward(Context& context,
                                     const GatedLinearAttentionBackwardArgs& args) {
  check_args(context.device(), args);
  if (context.device().is_cuda()) return gated_linear_attention_backward_cuda(context, args);
  for_each_sequence(args, [&](const GatedLinearAttentionBackwardArgs& one) {
    gated_linear_attention_backward_cpu(context, one);
  });
}

}  // namespace spb::ops
