// What every segment adds to the state after it and to the gradient of the state before it, on
// tensor cores.
#include "core/cuda/launch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_backward_chunk.cuh"

namespace spb::ops::gated {
namespace {

template <int kDim>
struct CollectMemory {
  bf16_t queries[2][kGradientChunk][kPaddedRow<kDim>];  // of two heads; first of all keys
  bf16_t d_o[2][kGradientChunk][kPaddedRow<kDim>];      // first of all values
  float decays[kGradientChunk][kDim];
  SubChunkGates<kDim> gates;
  float ones[kDim];
};

// Decays from each token to the end of the chunk, and of the chunk. True if it is steep.
template <int kDim>
__device__ bool write_key_decays(const Tensors& tensors, const Segment& segment, int head,
                                 float* of_chunk, CollectMemory<kDim>& memory) {
  const GateTask<kDim, kGradientChunk> task;
  const int column = 2 * task.pair;
  float2 gates[kSubChunk];
  load_sub_chunk<kDim>(tensors, segment, head, task, gates);
  memory.gates.publish(task, gates);
  if (threadIdx.x < kDim) memory.ones[threadIdx.x] = 1;
  __syncthreads();
  float2 sum = memory.gates.between(task.sub_chunk + 1, kGradientSubChunks, column);
  bool steep = false;
  float2 octet = {0, 0};
#pragma unroll
  for (int i = kSubChunk - 1; i >= 0; --i) {
    if (task.has(i)) {
      store_pair(&memory.decays[task.sub_chunk * kSubChunk + i][column], exp2_of(sum));
    }
    sum = sum + gates[i];
    octet = i % 8 == 7 ? gates[i] : octet + gates[i];
    steep = steep || octet.x < -kSteepOctet || octet.y < -kSteepOctet;
  }
  if (task.sub_chunk == 0 && task.share == 0) store_pair(of_chunk + column, exp2_of(sum));
  return steep;
}

// Decays from before the chunk to each token, times scale.
template <int kDim>
__device__ void write_query_decays(const Tensors& tensors, const Segment& segment, int head,
                                   CollectMemory<kDim>& memory) {
  const GateTask<kDim, kGradientChunk> task;
  const int column = 2 * task.pair;
  float2 gates[kSubChunk];
  load_sub_chunk<kDim>(tensors, segment, head, task, gates);
  float2 sum = memory.gates.between(0, task.sub_chunk, column);
#pragma unroll
  for (int i = 0; i < kSubChunk; ++i) {
    sum = sum + gates[i];
    if (task.has(i)) {
      store_pair(&memory.decays[task.sub_chunk * kSubChunk + i][column],
                 exp2_of(sum) * float2{tensors.scale, tensors.scale});
    }
  }
}

template <int kDim>
__device__ void decay_rows(bf16_t (*rows)[kPaddedRow<kDim>], const float (*decays)[kDim]) {
  constexpr int kPairs = kDim / 2;
  const auto column = static_cast<int>(threadIdx.x % kPairs) * 2;
#pragma unroll 4
  for (auto row = static_cast<int>(threadIdx.x / kPairs); row < kGradientChunk;
       row += kThreads / kPairs) {
    const float2 x = load_pair(&rows[row][column]);
    store_pair(&rows[row][column], x * load_pair(&decays[row][column]));
  }
}

template <int kDim>
__device__ void store_state(const StateTile<kDim>& state, float* to) {
  to += state.column + state.lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < StateTile<kDim>::kTiles; ++n) {
    const int row = state.row + state.lane / 4;
    store_pair(to + row * kDim + 8 * n, {state.at[n][0], state.at[n][1]});
    store_pair(to + (row + 8) * kDim + 8 * n, {state.at[n][2], state.at[n][3]});
  }
}

// One block for each segment and kv head.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 2)
    collect_kernel(const __grid_constant__ Batch batch,
                   const __grid_constant__ GradientTensors tensors, const GradientScratch scratch) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& memory = *reinterpret_cast<CollectMemory<kDim>*>(shared);
  const Tensors& forward = tensors.forward;
  const auto head = static_cast<int>(blockIdx.y);
  const Segment segment = segment_of(batch, static_cast<int>(blockIdx.x));
  const int64_t slot = int64_t{blockIdx.x} * forward.kv_heads + head;
  const int64_t stride = int64_t{kDim} * forward.kv_heads;
  const int64_t start = segment.first_token * stride + head * kDim;
  const auto copy = [&](bf16_t(*to)[kPaddedRow<kDim>], const void* from, int64_t offset,
                        int64_t row) {
    copy_rows<kGradientChunk, kDim>(to[0], kPaddedRow<kDim>,
                                    static_cast<const bf16_t*>(from) + offset, row, segment.tokens);
  };
  const auto copy_head = [&](int h) {
    if (h < forward.group) {
      const int64_t from = start * forward.group + h * kDim;
      copy(memory.queries[h % 2], forward.q, from, stride * forward.group);
      copy(memory.d_o[h % 2], tensors.d_o, from, stride * forward.group);
    }
    cuda::commit_copies();
  };

  copy(memory.queries[1], forward.k, start, stride);
  copy(memory.d_o[1], forward.v, start, stride);
  cuda::commit_copies();
  copy_head(0);
  const bool steep = __syncthreads_or(write_key_decays<kDim>(
                         forward, segment, head, scratch.decays + slot * kDim, memory)) != 0;
  if (threadIdx.x == 0) scratch.steep[slot] = steep;
  {
    cuda::wait_for_copies<1>();
    __syncthreads();
    decay_rows<kDim>(memory.queries[1], memory.decays);
    __syncthreads();
    StateTile<kDim> state;
    state.template add<kGradientChunk>(memory.ones, memory.queries[1], memory.d_o[1]);
    store_state(state, scratch.states + slot * kDim * kDim);
    __syncthreads();
    write_query_decays<kDim>(forward, segment, head, memory);
  }
  StateTile<kDim> gradient;
  for (int h = 0; h < forward.group; ++h) {
    copy_head(h + 1);
    cuda::wait_for_copies<1>();
    __syncthreads();
    decay_rows<kDim>(memory.queries[h % 2], memory.decays);
    __syncthreads();
    gradient.template add<kGradientChunk>(memory.ones, memory.queries[h % 2], memory.d_o[h % 2]);
    __syncthreads();  // these buffers are free again
  }
  store_state(gradient, scratch.gradients + slot * kDim * kDim);
}

template <int kDim>
void collect(const GradientTensors& tensors, const Batch& batch, const GradientScratch& scratch,
             cudaStream_t stream) {
  constexpr int kBytes = sizeof(CollectMemory<kDim>);
  const dim3 grid(batch.segments, tensors.forward.kv_heads);
  cuda::allow_shared_memory(collect_kernel<kDim>, kBytes);
  collect_kernel<kDim><<<grid, kThreads, kBytes, stream>>>(batch, tensors, scratch);
  cuda::check_launch("gated_linear_attention_backward: collecting states");
}

}  // namespace

void collect_chunks(const GradientTensors& tensors, const Batch& batch,
                    const GradientScratch& scratch, cudaStream_t stream) {
  tensors.forward.key_dim == 128 ? collect<128>(tensors, batch, scratch, stream)
                                 : collect<64>(tensors, batch, scratch, stream);
}

}  // namespace spb::ops::gated
