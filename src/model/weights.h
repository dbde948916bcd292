// ModelWeights: every tensor of a model as a view, and one visitor that knows them all.
//
// Loading, writing, synthesising, counting and converting walk the same list, so a tensor is named
// and shaped in one place. Views refer to a file mapping or to memory owned by somebody else.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor_view.h"
#include "model/config.h"

namespace spb::model {

struct LinearWeights {
  ConstTensorView weight;    // [out, in]; i8: codes
  ConstTensorView bias;      // [out], undefined when the model has none
  ConstTensorView scales;    // of codes, [out, ceil(in / 128)]; a float weight stands for the codes
                             // that rounding weight / scale gives
  ConstTensorView residual;  // [n, 3] i32: row, column, and what the code exceeds the i8 by
};

// A SwiGLU network: gate and up [width, hidden], down [hidden, width].
struct NetworkWeights {
  LinearWeights gate, up, down;
};

struct LayerWeights {
  ConstTensorView attn_norm;  // [hidden]
  LinearWeights q, k, v, o;   // shared by parallel mixers
  LinearWeights gate_down;    // linear mixers: low-rank log-decay gate, [rank, hidden]
  LinearWeights gate_up;      // [kv_size, rank] with bias
  LinearWeights gate;         // the product of the two, [kv_size, hidden] with bias, instead
  // Norm of every head's output, [head_dim], by kind of mixer: linear ones and parallel branches.
  std::array<ConstTensorView, kMixerKinds> head_norms;
  ConstTensorView branch_weights;  // [branches], when learned
  ConstTensorView mlp_norm;
  NetworkWeights dense;
  ConstTensorView router;  // [experts, hidden]
  NetworkWeights experts;  // stacks of matrices: gate and up [experts, width, hidden]
  NetworkWeights shared;   // all shared experts side by side: width = their number * one width
};

struct ModelWeights {
  ConstTensorView embeddings;  // [vocab, hidden]
  ConstTensorView sinks;       // [sink_tokens, hidden]
  std::vector<LayerWeights> layers;
  ConstTensorView norm;     // [hidden]
  ConstTensorView lm_head;  // [vocab, hidden]; the embedding table when tied
};

// What a tensor is for; decides which weight format it may take.
enum class TensorUse {
  kEmbedding,    // rows are looked up (and multiplied when tied)
  kMatrix,       // multiplied: any block format
  kExperts,      // a stack of matrices, of which a token uses a few: any block format
  kCodes,        // multiplied with spike counts: 8-bit codes, or floats to be rounded with scales
  kScales,       // of codes: a float type
  kResidual,     // of codes: i32
  kVector,       // norms, biases, routers and sink embeddings: always f32 in our files
  kSmallMatrix,  // the low-rank gate: kept at 16 bits or more, since it feeds an exponent
};

struct TensorSlot {
  int64_t layer;          // -1 outside the layers
  std::string_view role;  // "attn_q.weight": the GGUF name without "blk.N."
  TensorUse use;
  Shape shape;  // the first dimension of a residual is unknown: 0
  ConstTensorView* view;
  bool optional = false;  // a file may lack it
};

// Calls `visit` for every tensor the config implies, in file order. weights.layers is sized first.
void for_each_tensor(const ModelConfig& config, ModelWeights& weights,
                     const std::function<void(const TensorSlot&)>& visit);

enum class Naming {
  kGguf,              // blk.3.attn_q.weight
  kHuggingFace,       // model.layers.3.self_attn.q_proj.weight (Llama, Qwen2)
  kHuggingFaceHybrid  // model.layers.3.attn.q_proj.weight (SpikingBrain, model type gla_swa)
};

std::string tensor_name(const TensorSlot& slot, Naming naming);

struct ParameterCount {
  int64_t total = 0;
  int64_t active = 0;  // used by one token: of the routed experts only the chosen ones
};
ParameterCount count_parameters(const ModelConfig& config);

}  // namespace spb::model
