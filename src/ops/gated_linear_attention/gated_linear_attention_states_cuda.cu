// States of the chunked form: what every segment adds to the state, then the state before each.
#include "core/cuda/launch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_chunk.cuh"

namespace spb::ops::gated {
namespace {

constexpr int kChunk = 64;

template <int kDim, typename Gate>
struct CollectStage {
  Gate gates[kChunk][kDim];
  bf16_t keys[kChunk][kDim];
  bf16_t values[kChunk][kPaddedRow<kDim>];
};

template <int kDim, typename Gate, int kStages>
struct CollectMemory {
  CollectStage<kDim, Gate> stage[kStages];
  bf16_t ending[kChunk][kPaddedRow<kDim>];  // keys, decayed to the end of the chunk
  float total[kChunk / kSubChunk][kDim];    // log decay of sub-chunks
  float decay[kDim];                        // of the chunk
};

// Keys as they count at the end of the chunk. Log decays are summed over the tokens in between, not
// subtracted from each other: a strong gate would swallow weak ones. Returns the log decay of the
// whole chunk, to those threads that have its first sub-chunk.
template <int kDim, typename Memory, typename Stage>
__device__ float2 decay_keys(Memory& memory, const Stage& stage, bool rectify) {
  using Task = GateTask<kDim, kChunk>;
  const Task task;
  const int column = 2 * task.pair;
  const int first = task.sub_chunk * kSubChunk;
  float2 gates[kSubChunk];
  float2 total = {0, 0};
#pragma unroll
  for (int i = 0; i < kSubChunk; ++i) {
    gates[i] = load_gates(&stage.gates[first + i][column]);
    total = total + gates[i];
  }
  if (task.share == 0) store_pair(&memory.total[task.sub_chunk][column], total);
  __syncthreads();
  float2 later = {0, 0};
  for (int j = task.sub_chunk + 1; j < kChunk / kSubChunk; ++j) {
    later = later + load_pair(&memory.total[j][column]);
  }
  const float2 chunk = total + later;
  if (task.sub_chunk == 0 && task.share == 0) store_pair(&memory.decay[column], exp2_of(chunk));
#pragma unroll
  for (int i = kSubChunk - 1; i >= 0; --i) {
    if (task.has(i)) {
      const float2 key = load_mapped(&stage.keys[first + i][column], rectify);
      store_pair(&memory.ending[first + i][column], key * exp2_of(later));
    }
    later = later + gates[i];
  }
  return chunk;
}

// One block for each segment and kv head: its state at the end had it started from zero, and the
// decay over all of it.
template <int kDim, typename Gate, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    collect_kernel(const __grid_constant__ Batch batch, const Tensors tensors,
                   const Scratch scratch) {
  using Memory = CollectMemory<kDim, Gate, kStages>;
  extern __shared__ __align__(16) unsigned char shared[];
  Memory& memory = *reinterpret_cast<Memory*>(shared);
  const auto segment_index = static_cast<int>(blockIdx.x);
  const auto head = static_cast<int>(blockIdx.y);
  const Segment segment = segment_of(batch, segment_index);
  const int64_t stride = int64_t{kDim} * tensors.kv_heads;
  const int64_t start = segment.first_token * stride + head * kDim;
  const auto copy_chunk = [&](int chunk) {
    const int left = segment.tokens - chunk * kChunk;
    if (left > 0) {
      auto& stage = memory.stage[chunk % kStages];
      const int64_t from = start + chunk * kChunk * stride;
      copy_rows<kChunk, kDim>(stage.gates[0], kDim, static_cast<const Gate*>(tensors.g) + from,
                              stride, left);
      copy_rows<kChunk, kDim>(stage.keys[0], kDim, static_cast<const bf16_t*>(tensors.k) + from,
                              stride, left);
      copy_rows<kChunk, kDim>(stage.values[0], kPaddedRow<kDim>,
                              static_cast<const bf16_t*>(tensors.v) + from, stride, left);
    }
    cuda::commit_copies();  // an empty group keeps the count
  };

  for (int chunk = 0; chunk < kStages - 1; ++chunk) copy_chunk(chunk);
  StateTile<kDim> state;
  float2 log_decay = {0, 0};
  for (int chunk = 0; chunk * kChunk < segment.tokens; ++chunk) {
    cuda::wait_for_copies<kStages - 2>();
    __syncthreads();  // this chunk has arrived, the one before is no longer read
    copy_chunk(chunk + kStages - 1);
    const auto& stage = memory.stage[chunk % kStages];
    log_decay = log_decay + decay_keys<kDim>(memory, stage, tensors.rectify);
    __syncthreads();
    state.template add<kChunk>(memory.decay, memory.ending, stage.values);
  }

  const int64_t slot = int64_t{segment_index} * tensors.kv_heads + head;
  const GateTask<kDim, kChunk> task;
  if (task.sub_chunk == 0 && task.share == 0) {
    store_pair(scratch.decays + slot * kDim + 2 * task.pair, exp2_of(log_decay));
  }
  float* to = scratch.states + slot * kDim * kDim + state.column + state.lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < StateTile<kDim>::kTiles; ++n) {
    const int row = state.row + state.lane / 4;
    store_pair(to + row * kDim + 8 * n, {state.at[n][0], state.at[n][1]});
    store_pair(to + (row + 8) * kDim + 8 * n, {state.at[n][2], state.at[n][3]});
  }
}

constexpr int kFoldThreads = 128;

// One thread for an element of the state of a sequence: replaces what each segment adds by the
// state before it, and the initial state by the final one.
template <int kDim>
__global__ void __launch_bounds__(kFoldThreads, 4)
    fold_kernel(const __grid_constant__ Batch batch, const Scratch scratch) {
  constexpr int kAhead = 16;  // segments whose loads are under way at once
  const Sequence& sequence = batch.sequence[blockIdx.z];
  const auto element = static_cast<int>(blockIdx.x * kFoldThreads + threadIdx.x);
  const auto segments =
      static_cast<int>((sequence.tokens + sequence.segment_tokens - 1) / sequence.segment_tokens);
  const int64_t slot = int64_t{sequence.first_segment} * gridDim.y + blockIdx.y;
  float* states = scratch.states + slot * kDim * kDim + element;
  const float* decays = scratch.decays + slot * kDim + element / kDim;
  const int64_t stride = int64_t{gridDim.y} * kDim;
  float* stored = sequence.state + int64_t{blockIdx.y} * kDim * kDim + element;
  float state = *stored;
  for (int first = 0; first < segments; first += kAhead) {
    float added[kAhead];
    float decay[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= segments) continue;
      added[i] = states[(first + i) * stride * kDim];
      decay[i] = decays[(first + i) * stride];
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= segments) continue;
      states[(first + i) * stride * kDim] = state;
      state = fmaf(state, decay[i], added[i]);
    }
  }
  *stored = state;
}

template <int kDim, typename Gate, int kStages>
bool try_collect(const Tensors& tensors, const Batch& batch, const Scratch& scratch,
                 int shared_limit, cudaStream_t stream) {
  constexpr int kBytes = sizeof(CollectMemory<kDim, Gate, kStages>);
  if (kBytes > shared_limit) return false;
  const auto kernel = collect_kernel<kDim, Gate, kStages>;
  cuda::allow_shared_memory(kernel, kBytes);
  kernel<<<dim3(batch.segments, tensors.kv_heads), kThreads, kBytes, stream>>>(batch, tensors,
                                                                               scratch);
  cuda::check_launch("gated_linear_attention: collecting states");
  return true;
}

template <int kDim>
void collect(const Tensors& tensors, const Batch& batch, const Scratch& scratch,
             cudaStream_t stream) {
  const int shared_limit = shared_memory_limit();
  with_gate(tensors, [&](auto gate) {
    using Gate = decltype(gate);
    if (!try_collect<kDim, Gate, 3>(tensors, batch, scratch, shared_limit, stream)) {
      try_collect<kDim, Gate, 2>(tensors, batch, scratch, shared_limit, stream);
    }
  });
  const dim3 grid(kDim * kDim / kFoldThreads, tensors.kv_heads, batch.sequences);
  fold_kernel<kDim><<<grid, kFoldThreads, 0, stream>>>(batch, scratch);
  cuda::check_launch("gated_linear_attention: folding states");
}

}  // namespace

int shared_memory_limit() {
  int device = 0;
  int bytes = 0;
  cuda::check_cuda(cudaGetDevice(&device), "asking for the current device");
  cuda::check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                   "asking for the limit of shared memory");
  return bytes;
}

void collect_states(const Tensors& tensors, const Batch& batch, const Scratch& scratch,
                    cudaStream_t stream) {
  tensors.key_dim == 128 ? collect<128>(tensors, batch, scratch, stream)
                         : collect<64>(tensors, batch, scratch, stream);
}

}  // namespace spb::ops::gated
