// What every segment adds to the gradient of the state before it, on tensor cores.
#include "core/cuda/launch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_backward_chunk.cuh"

namespace spb::ops::gated {
namespace {

template <int kDim>
struct CollectMemory {
  bf16_t queries[2][kGradientChunk][kPaddedRow<kDim>];  // of two heads
  bf16_t d_o[2][kGradientChunk][kPaddedRow<kDim>];
  float decays[kGradientChunk][kDim];  // scale times decay from before the chunk to the token
  SubChunkGates<kDim> gates;
  float ones[kDim];
};

// Decays of the chunk; true if it is steep. A barrier must follow.
template <int kDim>
__device__ bool write_decays(const Tensors& tensors, const Segment& segment, int head,
                             CollectMemory<kDim>& memory) {
  const GradientTask<kDim> task;
  const int column = 2 * task.pair;
  float2 gates[kSubChunk];
  load_sub_chunk<kDim>(tensors, segment, head, task, gates);
  memory.gates.publish(task, gates);
  if (threadIdx.x < kDim) memory.ones[threadIdx.x] = 1;
  __syncthreads();
  float2 sum = memory.gates.between(0, task.sub_chunk, column);
  bool steep = false;
  float2 octet = {0, 0};
#pragma unroll
  for (int i = 0; i < kSubChunk; ++i) {
    sum = sum + gates[i];
    octet = i % 8 == 0 ? gates[i] : octet + gates[i];
    steep = steep || octet.x < -kSteepOctet || octet.y < -kSteepOctet;
    if (task.has(i)) {
      store_pair(&memory.decays[task.sub_chunk * kSubChunk + i][column],
                 exp2_of(sum) * float2{tensors.scale, tensors.scale});
    }
  }
  return steep;
}

template <int kDim>
__device__ void decay_queries(bf16_t (*queries)[kPaddedRow<kDim>], const float (*decays)[kDim]) {
  constexpr int kPairs = kDim / 2;
  const auto column = static_cast<int>(threadIdx.x % kPairs) * 2;
#pragma unroll 4
  for (auto row = static_cast<int>(threadIdx.x / kPairs); row < kGradientChunk;
       row += kThreads / kPairs) {
    const float2 query = load_pair(&queries[row][column]);
    store_pair(&queries[row][column], query * load_pair(&decays[row][column]));
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
  const int64_t stride = int64_t{kDim} * forward.kv_heads * forward.group;
  const int64_t start = segment.first_token * stride + int64_t{head} * forward.group * kDim;
  const auto copy_head = [&](int h) {
    if (h < forward.group) {
      const int64_t from = start + h * kDim;
      copy_rows<kGradientChunk, kDim>(memory.queries[h % 2][0], kPaddedRow<kDim>,
                                      static_cast<const bf16_t*>(forward.q) + from, stride,
                                      segment.tokens);
      copy_rows<kGradientChunk, kDim>(memory.d_o[h % 2][0], kPaddedRow<kDim>,
                                      static_cast<const bf16_t*>(tensors.d_o) + from, stride,
                                      segment.tokens);
    }
    cuda::commit_copies();
  };

  copy_head(0);
  const bool steep = __syncthreads_or(write_decays<kDim>(forward, segment, head, memory)) != 0;
  if (threadIdx.x == 0) scratch.steep[slot] = steep;
  StateTile<kDim> gradient;
  for (int h = 0; h < forward.group; ++h) {
    copy_head(h + 1);
    cuda::wait_for_copies<1>();
    __syncthreads();
    decay_queries<kDim>(memory.queries[h % 2], memory.decays);
    __syncthreads();
    gradient.template add<kGradientChunk>(memory.ones, memory.queries[h % 2], memory.d_o[h % 2]);
    __syncthreads();  // these buffers are free again
  }
  float* to = scratch.gradients + slot * kDim * kDim + gradient.column + gradient.lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < StateTile<kDim>::kTiles; ++n) {
    const int row = gradient.row + gradient.lane / 4;
    store_pair(to + row * kDim + 8 * n, {gradient.at[n][0], gradient.at[n][1]});
    store_pair(to + (row + 8) * kDim + 8 * n, {gradient.at[n][2], gradient.at[n][3]});
  }
}

template <int kDim>
void collect(const GradientTensors& tensors, const Batch& batch, const GradientScratch& scratch,
             cudaStream_t stream) {
  constexpr int kBytes = sizeof(CollectMemory<kDim>);
  const dim3 grid(batch.segments, tensors.forward.kv_heads);
  cuda::allow_shared_memory(collect_kernel<kDim>, kBytes);
  collect_kernel<kDim><<<grid, kThreads, kBytes, stream>>>(batch, tensors, scratch);
  cuda::check_launch("gated_linear_attention_backward: collecting gradients");
}

}  // namespace

void collect_gradients(const GradientTensors& tensors, const Batch& batch,
                       const GradientScratch& scratch, cudaStream_t stream) {
  tensors.forward.key_dim == 128 ? collect<128>(tensors, batch, scratch, stream)
                                 : collect<64>(tensors, batch, scratch, stream);
}

}  // namespace spb::ops::gated
