#include "ops/gated_linear_attention/gated_linear_attention_cuda.h"

#include <algorithm>

#include "core/cuda/launch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_batch.cuh"

namespace spb::ops {
namespace {

// Up to here the recurrent form is the faster one (measured on an H100, one sequence).
constexpr int64_t kRecurrentTokens = 6;

// Segments times kv heads of a long sequence: about as many blocks as the large cards run at once.
constexpr int64_t blocks_of(int dim) { return dim == 128 ? 128 : 256; }

gated::Tensors tensors_of(const GatedLinearAttentionArgs& args) {
  gated::Tensors tensors = gated::inputs_of(args);
  tensors.o = args.o.data();
  tensors.rectify = args.rectify;
  const auto also = [&](const void* pointer) {
    tensors.aligned = tensors.aligned && gated::aligned(pointer);
  };
  also(tensors.o);
  also(args.state.data());
  for (const GatedLinearAttentionSequence& sequence : args.sequences) also(sequence.state.data());
  return tensors;
}

// Collects the sequences of one form into launches.
class Launches {
 public:
  Launches(Context& context, const gated::Tensors& tensors, bool chunked)
      : context_(context), tensors_(tensors), chunked_(chunked) {}

  void add(int64_t first_token, int64_t tokens, TensorView state) {
    const int64_t units = cuda::ceil_divide(tokens, gated::kSegmentUnit);
    const int64_t segment_units =
        cuda::ceil_divide(units * tensors_.kv_heads, blocks_of(tensors_.key_dim));
    batch_.sequence[batch_.sequences++] = {first_token, tokens, state.as<float>(), batch_.segments,
                                           static_cast<int>(segment_units * gated::kSegmentUnit)};
    batch_.segments += static_cast<int>(cuda::ceil_divide(units, segment_units));
    if (batch_.sequences == gated::kMaxSequences) launch();
  }

  void launch() {
    if (batch_.sequences == 0) return;
    chunked_ ? launch_chunked() : gated::recur(context_, tensors_, batch_);
    batch_.sequences = 0;
    batch_.segments = 0;
  }

 private:
  void launch_chunked() {
    const Arena::Scope scope(context_.arena());
    const int64_t rows = int64_t{batch_.segments} * tensors_.kv_heads * tensors_.key_dim;
    const gated::Scratch scratch{context_.arena().allocate<float>(rows * tensors_.value_dim),
                                 context_.arena().allocate<float>(rows)};
    gated::collect_states(tensors_, batch_, scratch, cuda::stream_of(context_));
    gated::read_states(tensors_, batch_, scratch, cuda::stream_of(context_));
  }

  Context& context_;
  const gated::Tensors& tensors_;
  bool chunked_;
  gated::Batch batch_;
};

}  // namespace

void gated_linear_attention_cuda(Context& context, const GatedLinearAttentionArgs& args) {
  const gated::Tensors tensors = tensors_of(args);
  const bool can_chunk = tensors.bf16 && tensors.aligned && tensors.key_dim == tensors.value_dim &&
                         (tensors.key_dim == 64 || tensors.key_dim == 128);
  const auto chunks = [&](int64_t tokens) {
    if (!can_chunk || args.form == GatedLinearAttentionForm::kRecurrent) return false;
    return args.form == GatedLinearAttentionForm::kChunked || tokens > kRecurrentTokens;
  };
  const Arena::Scope scope(context.arena());
  gated::Tensors whole = tensors;  // for blocks that read queries which others may overwrite
  const auto keep_queries = [&] {
    if (whole.q != whole.o || gated::recurrent_tiles(whole) == 1) return;
    std::byte* copy = context.arena().allocate_bytes(args.q.bytes());
    context.stream().copy_on_device(copy, args.q.data(), args.q.bytes());
    whole.q = copy;
  };
  Launches chunked(context, tensors, true);
  Launches recurrent(context, whole, false);
  int64_t first = 0;
  const auto add = [&](int64_t tokens, TensorView state) {
    if (tokens == 0) return;
    const bool in_chunks = chunks(tokens);
    if (!in_chunks) keep_queries();
    (in_chunks ? chunked : recurrent).add(first, tokens, state);
    first += tokens;
  };
  if (args.sequences.empty()) add(args.q.shape()[0], args.state);
  for (const GatedLinearAttentionSequence& sequence : args.sequences) {
    add(sequence.tokens, sequence.state);
  }
  chunked.launch();
  recurrent.launch();
}

}  // namespace spb::ops
