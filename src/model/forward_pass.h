// The inside of forward(): a batch of rows on its way through the layers.
//
// forward.cpp runs texts, sinks.cpp the sink tokens; both walk the same layers.
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "model/activity.h"
#include "model/forward.h"
#include "model/model.h"
#include "model/state.h"
#include "ops/softmax_attention/softmax_attention.h"

namespace spb::model {

// Consecutive rows of one sequence.
struct Segment {
  SequenceState* state;
  int64_t first;  // row
  int64_t count;
};

// The rows of all sequences, one after another.
struct Batch {
  std::vector<Segment> segments;
  std::vector<Segment> asking;     // rows whose outputs are wanted: all but in the last layer
  std::vector<int64_t> positions;  // of every row
  TensorView residual;             // [N, hidden]: the stream that layers add to
  bool sinks = false;              // the rows are the model's sink tokens

  int64_t rows() const { return residual.shape()[0]; }
  int64_t asking_rows() const {
    int64_t count = 0;
    for (const Segment& segment : asking) count += segment.count;
    return count;
  }
  bool all_ask() const { return asking_rows() == rows(); }
};

class ForwardPass {
 public:
  ForwardPass(Context& context, const Model& model, const ForwardHooks& hooks)
      : context_(context),
        arena_(context.arena()),
        model_(model),
        config_(model.config()),
        hooks_(hooks) {}

  // Room for `rows` rows; the caller fills the residual with their embeddings.
  void start(Batch& batch, int64_t rows);

  // norm -> token mixers; returns the heads' outputs [asking_rows, query_size].
  TensorView mix(int64_t index, const Batch& batch);

  // Whether the layer can be mixed for fewer rows than come to its norm: those that nobody asks
  // for still leave their keys and values.
  bool can_leave_out(int64_t index) const;

  // The asking rows of a matrix [N, ...].
  TensorView keep_asking(const Batch& batch, TensorView all);

  // Goes on with the asking rows of the residual alone.
  void keep_asking(Batch& batch);

  // The rest of a layer: output projection, norm, feed-forward network.
  void finish_layer(int64_t index, ConstTensorView mixed, const Batch& batch);

  // The norm of the residual.
  TensorView norm(const Batch& batch, const Tensor& weight);

  // Room for activations, and for what must stay f32 whatever they are.
  TensorView rows(int64_t count, int64_t columns) {
    return arena_.tensor(context_.activation_dtype(), Shape{count, columns});
  }
  TensorView float_rows(int64_t count, int64_t columns) {
    return arena_.tensor(Shape{count, columns});
  }
  Arena& arena() { return arena_; }

 private:
  struct Output {
    const Projection* projection;
    TensorView y;
    bool accumulate = false;  // y +=
  };

  // What all mixers of a layer start from.
  struct Heads {
    TensorView q, k, v;  // [asking_rows, query_size], [N, kv_size] twice
    TensorView gate;     // [N, kv_size]; undefined without linear mixers
  };

  // Where a product stands, for observers and messages.
  struct Place {
    int64_t layer;
    Site site;
  };

  // With `up` the inputs are those of swiglu(x, up), which nobody sees and only spikes can take.
  void project(Place place, ConstTensorView x, std::initializer_list<Output> outputs,
               ConstTensorView up = {});
  void project_dense(ConstTensorView x, std::initializer_list<Output> outputs);
  // residual += the projection of x.
  void project_onto_residual(Place place, ConstTensorView x, const Projection& projection,
                             const Batch& batch, ConstTensorView up = {});
  // Whether the inputs of a projection become spikes that nobody looks at.
  bool fires_unseen(Place place, const Projection& projection) const;
  void project_codes(Place place, const spike::SpikeCounts& counts,
                     std::initializer_list<Output> outputs);
  // Whether executing the train gives the bits of y.
  void verify_spikes(Place place, const spike::SpikeCounts& counts,
                     const spike::SpikeMatmulTarget& train, ConstTensorView y);
  // The counts of x, shown to the observer.
  spike::SpikeCounts fire(Place place, ConstTensorView x, ConstTensorView up = {});
  double k_at(Place place) const;  // of a spiking model

  TensorView copy(TensorView matrix);

  Heads project_heads(int64_t index, TensorView normed, const Batch& batch);
  void project_asking(int64_t index, TensorView normed, const Heads& heads, const Batch& batch);
  TensorView mix_branches(const Layer& layer, int64_t index, const Heads& heads,
                          const Batch& batch);
  void mix_softmax(const Heads& heads, int64_t index, size_t branch, const Batch& batch);
  void mix_linear(const Heads& heads, int64_t index, size_t branch, const Batch& batch);
  std::vector<ops::CachedSequence> cached(std::span<const Segment> segments, int64_t index,
                                          size_t branch, const Batch& batch);
  void attend(const Heads& heads, int64_t index, size_t branch, const Batch& batch);
  void append(const Heads& heads, int64_t index, std::span<const ops::CachedSequence> sequences);
  void rotate(const Heads& heads, const Batch& batch);
  void fire_queries(int64_t index, TensorView q);
  // Every head of every token to 8 bits, unless the cache does it.
  void round_heads(Place place, TensorView heads, DType cache);
  template <typename Action>
  void say_where(Place place, Action action);
  // sum = or += the normalized heads of `from`.
  void add_normalized(const Tensor& weight, TensorView from, TensorView sum, bool add);

  bool plain(const Network& network) const;
  // The same of a network whose inputs become spikes there.
  bool plain_spikes(Place in, const Network& network) const;
  // Both add to the residual.
  void run_network(int64_t index, const Network& network, ConstTensorView x, const Batch& batch);
  void run_experts(int64_t index, ConstTensorView x, const Batch& batch);
  ops::MoeChoices choose_experts(int64_t index, ConstTensorView x);
  void show_choices(int64_t index, ConstTensorView logits, const ops::MoeChoices& choices);

  float norm_eps() const { return static_cast<float>(config_.norm_eps); }
  float attention_scale() const;

  Context& context_;
  Arena& arena_;
  const Model& model_;
  const ModelConfig& config_;
  const ForwardHooks& hooks_;
};

// What a step on a CUDA device reads and writes in its memory instead of the host's.
struct StepMemory {
  const int32_t* ids = nullptr;  // of the tokens of all slices
  TensorView logits = {};
};

// Usage error unless states and tokens of the slices are such that forward() can run them.
void check_slices(const Model& model, std::span<const SequenceSlice> slices);

// forward() without checks of its arguments. Exactly one of `logits` and `memory` is there where
// logits are wanted.
void run_slices(Context& context, const Model& model, std::span<const SequenceSlice> slices,
                TensorView logits, const ForwardHooks& hooks, const StepMemory& memory = {});

}  // namespace spb::model
