#include "ops/gated_linear_attention/gated_linear_attention_backward_cuda.h"

#include "core/cuda/launch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_backward_chunk.cuh"

namespace spb::ops {
namespace {

gated::GradientTensors tensors_of(const GatedLinearAttentionBackwardArgs& args) {
  gated::GradientTensors tensors;
  tensors.forward = gated::inputs_of(args);
  tensors.d_o = args.d_o.data();
  tensors.d_q = args.d_q.data();
  tensors.d_k = args.d_k.data();
  tensors.d_v = args.d_v.data();
  tensors.d_g = args.d_g.as<float>();
  bool& all = tensors.forward.aligned;
  all = all && gated::aligned(tensors.d_o) && gated::aligned(tensors.d_q) &&
        gated::aligned(tensors.d_k) && gated::aligned(tensors.d_v) && gated::aligned(tensors.d_g);
  return tensors;
}

bool can_chunk(const gated::Tensors& tensors) {
  return tensors.bf16 && tensors.aligned && tensors.key_dim == tensors.value_dim &&
         (tensors.key_dim == 64 || tensors.key_dim == 128) && gated::chunks_fit(tensors.key_dim);
}

// Collects sequences into launches.
class Launches {
 public:
  Launches(Context& context, const gated::GradientTensors& tensors)
      : context_(context), tensors_(tensors), chunked_(can_chunk(tensors.forward)) {}

  void add(const GatedLinearAttentionBackwardSequence& sequence) {
    const int64_t tokens = sequence.tokens;
    if (tokens == 0) return copy_end(sequence);
    const auto pointer = [](const auto& tensor) {
      return tensor.defined() ? tensor.template as<float>() : nullptr;
    };
    const int i = batch_.sequences++;
    ends_.state[i] = pointer(sequence.state);
    ends_.d_final_state[i] = pointer(sequence.d_final_state);
    ends_.d_state[i] = pointer(sequence.d_state);
    batch_.sequence[i] = {first_token_, tokens, nullptr, batch_.segments, gated::kSegmentUnit};
    batch_.segments += static_cast<int>(cuda::ceil_divide(tokens, gated::kSegmentUnit));
    first_token_ += tokens;
    if (batch_.sequences == gated::kMaxSequences) launch();
  }

  void launch() {
    if (batch_.sequences == 0) return;
    const Arena::Scope scope(context_.arena());
    const int64_t slots = int64_t{batch_.segments} * tensors_.forward.kv_heads;
    const int64_t rows = slots * tensors_.forward.key_dim;
    Arena& arena = context_.arena();
    const gated::GradientScratch scratch{arena.allocate<float>(rows * tensors_.forward.value_dim),
                                         arena.allocate<float>(rows * tensors_.forward.value_dim),
                                         arena.allocate<float>(rows), arena.allocate<int>(slots)};
    const cudaStream_t stream = cuda::stream_of(context_);
    const auto collect = chunked_ ? gated::collect_chunks : gated::collect_exactly;
    collect(tensors_, batch_, scratch, stream);
    gated::fold(tensors_, batch_, ends_, scratch, stream);
    if (chunked_) gated::differentiate(tensors_, batch_, scratch, stream);
    gated::differentiate_exactly(tensors_, batch_, scratch, chunked_, stream);
    batch_.sequences = 0;
    batch_.segments = 0;
  }

 private:
  // Of a sequence without tokens.
  void copy_end(const GatedLinearAttentionBackwardSequence& sequence) {
    if (!sequence.d_state.defined()) return;
    const int64_t bytes = sequence.d_state.bytes();
    if (sequence.d_final_state.defined()) {
      context_.stream().copy_on_device(sequence.d_state.data(), sequence.d_final_state.data(),
                                       bytes);
    } else {
      context_.stream().fill_zero(sequence.d_state.data(), bytes);
    }
  }

  Context& context_;
  const gated::GradientTensors& tensors_;
  bool chunked_;
  int64_t first_token_ = 0;
  gated::Batch batch_;
  gated::Ends ends_;
};

}  // namespace

void gated_linear_attention_backward_cuda(Context& context,
                                          const GatedLinearAttentionBackwardArgs& args) {
  const gated::GradientTensors tensors = tensors_of(args);
  Launches launches(context, tensors);
  if (args.sequences.empty()) {
    launches.add({args.q.shape()[0], args.state, args.d_final_state, args.d_state});
  }
  for (const GatedLinearAttentionBackwardSequence& sequence : args.sequences) {
    launches.add(sequence);
  }
  launches.launch();
}

}  // namespace spb::ops
