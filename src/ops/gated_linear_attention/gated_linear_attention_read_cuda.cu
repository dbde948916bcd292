// Outputs of the chunked form. One block for each segment and kv head walks the chunks of its
// segment with the state in registers; all query heads of the group read the same preparations.
#include "core/cuda/launch.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_chunk.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_exact.cuh"
#include "ops/gated_linear_attention/gated_linear_attention_read.cuh"

namespace spb::ops::gated {
namespace {

constexpr int kChunk = kReadChunk;

// Blocks of a multiprocessor: registers for one state of 128 x 128 or for two smaller ones.
template <int kDim>
constexpr int kResident = kDim == 128 ? 1 : 2;

// 16 tokens of one query head: the work of a warp at a time. Late sub-chunks have more keys to
// meet and come first, so that the short ones fill the end.
struct TileIndex {
  int chunk;
  int sub_chunk;
  int query_head;  // in the group

  __device__ static TileIndex at(int chunk, int group, int index) {
    TileIndex tile = {chunk, kSubChunks - 1, index};
    tile.carry(group);
    return tile;
  }
  // The next tile of this warp, in the same chunk.
  __device__ TileIndex after(int group) const {
    TileIndex tile = {chunk, sub_chunk, query_head + kWarps};
    tile.carry(group);
    return tile;
  }
  __device__ bool exists() const { return sub_chunk >= 0; }

 private:
  __device__ void carry(int group) {
    for (; query_head >= group && sub_chunk >= 0; --sub_chunk) query_head -= group;
  }
};

template <int kDim, typename Gate>
class Tile {
 public:
  using Memory = ReadMemory<kDim, Gate>;

  __device__ Tile(const Tensors& tensors, const Segment& segment, int head, const TileIndex& index)
      : rectify_(tensors.rectify),
        sub_chunk_(index.sub_chunk),
        stride_(tensors.kv_heads * tensors.group * kDim) {
    const int skipped = index.chunk * kChunk + index.sub_chunk * kSubChunk;
    tokens_ = segment.tokens - skipped;
    const int64_t token = segment.first_token + skipped;
    offset_ = token * stride_ + (head * tensors.group + index.query_head) * kDim;
  }

  __device__ void load(const Tensors& tensors, Queries<kDim>& queries) const {
    const auto* from = static_cast<const bf16_t*>(tensors.q) + offset_ + lane_ % 4 * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_ / 4 + 8 * half;
#pragma unroll
      for (int m = 0; m < kDim / 32; ++m) {
        uint4 words = {0, 0, 0, 0};
        if (row < tokens_) {
          words = *reinterpret_cast<const uint4*>(from + row * stride_ + 32 * m);
        }
        queries.at[m][half][0] = words.x;
        queries.at[m][half][1] = words.y;
        queries.at[m][half][2] = words.z;
        queries.at[m][half][3] = words.w;
      }
    }
  }

  // Weights of the diagonal block, whatever the gates are. Maps the queries.
  __device__ void score_exactly(const Memory& memory, const Tensors& tensors,
                                Queries<kDim>& queries, uint32_t (&weights)[4]) const {
    queries.map(rectify_);
    float scores[2][4] = {};
    exact_scores<kDim>(queries, memory.halves[sub_chunk_],
                       memory.anchored[Memory::block(sub_chunk_, sub_chunk_)], tensors.scale,
                       scores);
    pack(scores, weights);
  }

  // The outputs of sub-chunk kSubChunkIndex, a constant so that its loops are straight code.
  // `queries` are overwritten. If steep, `exact` are the weights of the diagonal block.
  template <int kSubChunkIndex>
  __device__ void compute(const Memory& memory, const bf16_t (*values)[Memory::kRow], bool steep,
                          const uint32_t (&exact)[4], Queries<kDim>& queries,
                          float (&o)[kDim / 8][4]) const {
    uint32_t weights[kSubChunkIndex + 1][4];
    score<kSubChunkIndex>(memory, queries, weights);
    if (steep) {
#pragma unroll
      for (int word = 0; word < 4; ++word) weights[kSubChunkIndex][word] = exact[word];
    }
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const uint32_t a[4] = {queries.word(step, 0), queries.word(step, 1), queries.word(step, 2),
                             queries.word(step, 3)};
      add_product(a, memory.state + 16 * step, o);
    }
#pragma unroll
    for (int j = 0; j <= kSubChunkIndex; ++j) add_product(weights[j], values + j * kSubChunk, o);
  }

  __device__ void store(const Tensors& tensors, const float (&o)[kDim / 8][4]) const {
    auto* to = static_cast<bf16_t*>(tensors.o) + offset_ + lane_ % 4 * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_ / 4 + 8 * half;
      if (row >= tokens_) continue;
#pragma unroll
      for (int m = 0; m < kDim / 32; ++m) {
        const auto word = [&](int u) {
          return cuda::pack_bf16(o[4 * m + u][2 * half], o[4 * m + u][2 * half + 1]);
        };
        *reinterpret_cast<uint4*>(to + row * stride_ + 32 * m) = {word(0), word(1), word(2),
                                                                  word(3)};
      }
    }
  }

 private:
  // Scores with the keys of this sub-chunk and those before it, as left factors of the product with
  // their values; turns the queries into the form that reads the state.
  template <int kLast>
  __device__ void score(const Memory& memory, Queries<kDim>& queries,
                        uint32_t (&weights)[kLast + 1][4]) const {
    float scores[kLast + 1][2][4] = {};
    const auto* keys = memory.anchored[Memory::block(kLast, 0)];
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t anchored[4];
      anchor<kLast>(memory, step, queries, anchored);
#pragma unroll
      for (int j = 0; j <= kLast; ++j) {
        uint32_t b[4];
        cuda::load_matrices(
            b, &keys[j * kSubChunk + lane_ % 8 + lane_ / 16 * 8][16 * step + lane_ / 8 % 2 * 8]);
        cuda::mma_bf16(scores[j][0], anchored, b[0], b[1]);
        cuda::mma_bf16(scores[j][1], anchored, b[2], b[3]);
      }
    }
    keep_causal(scores[kLast]);
#pragma unroll
    for (int j = 0; j <= kLast; ++j) pack(scores[j], weights[j]);
  }

  // Sixteen channels of the queries, mapped (once more if they were: nothing changes): anchored at
  // the first token of the sub-chunk as a left factor, and in place decayed from the start of the
  // chunk. To map them all where they are taken over would need more registers than there are.
  template <int kLast>
  __device__ void anchor(const Memory& memory, int step, Queries<kDim>& queries,
                         uint32_t (&anchored)[4]) const {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const int row = kLast * kSubChunk + lane_ / 4 + word % 2 * 8;
      const int column = 16 * step + word / 2 * 8 + lane_ % 4 * 2;
      uint32_t& query = queries.word(step, word);
      const float2 decayed =
          cuda::unpack_bf16(mapped(query, rectify_)) * load_pair(&memory.query_decay[row][column]);
      const float2 whole = decayed * load_pair(&memory.first_decay[kLast][column]);
      anchored[word] = cuda::pack_bf16(decayed.x, decayed.y);
      query = cuda::pack_bf16(whole.x, whole.y);
    }
  }

  // As left factor of a next product.
  __device__ static void pack(const float (&scores)[2][4], uint32_t (&weights)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      weights[2 * half] = cuda::pack_bf16(scores[half][0], scores[half][1]);
      weights[2 * half + 1] = cuda::pack_bf16(scores[half][2], scores[half][3]);
    }
  }

  // A select, for what lies above the diagonal may be infinite.
  __device__ void keep_causal(float (&scores)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = lane_ / 4 + e / 2 * 8;
        const int j = 8 * half + lane_ % 4 * 2 + e % 2;
        if (j > i) scores[half][e] = 0;
      }
    }
  }

  __device__ void add_product(const uint32_t (&a)[4], const bf16_t (*rows)[Memory::kRow],
                              float (&o)[kDim / 8][4]) const {
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t b[4];
      cuda::load_matrices_transposed(b, &rows[lane_ % 16][8 * n + lane_ / 16 * 8]);
      cuda::mma_bf16(o[n], a, b[0], b[1]);
      cuda::mma_bf16(o[n + 1], a, b[2], b[3]);
    }
  }

  int lane_ = static_cast<int>(threadIdx.x % 32);
  bool rectify_;
  int sub_chunk_;
  int stride_;
  int tokens_;  // those from the first of this tile on that exist
  int64_t offset_;
};

template <int kDim, typename Gate>
__device__ void copy_chunk(ReadMemory<kDim, Gate>& memory, const Tensors& tensors,
                           const Segment& segment, int head, int chunk) {
  const int left = segment.tokens - chunk * kChunk;
  if (left > 0) {
    const int64_t stride = int64_t{kDim} * tensors.kv_heads;
    const int64_t from = (segment.first_token + chunk * kChunk) * stride + head * kDim;
    copy_rows<kChunk, kDim>(memory.gates[0], kDim, static_cast<const Gate*>(tensors.g) + from,
                            stride, left);
    copy_rows<kChunk, kDim>(memory.keys[0], kDim, static_cast<const bf16_t*>(tensors.k) + from,
                            stride, left);
    auto& values = memory.values[chunk % 2];
    copy_pieces<kChunk, kDim, 2>(static_cast<const bf16_t*>(tensors.v) + from, stride, left,
                                 [&](unsigned row, unsigned column) {
                                   return &values[row][lane_order(static_cast<int>(column))];
                                 });
  }
  cuda::commit_copies();
}

// The state before the segment into registers, rows and columns in lane order.
template <int kDim>
__device__ void load_state(const float* from, StateTile<kDim>& state) {
#pragma unroll
  for (int n = 0; n < StateTile<kDim>::kTiles; ++n) {
    const int column = lane_order(state.column + 8 * n + state.lane % 4 * 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_order(state.row + state.lane / 4 + 8 * half);
      const float2 pair = load_pair(from + row * kDim + column);
      state.at[n][2 * half] = pair.x;
      state.at[n][2 * half + 1] = pair.y;
    }
  }
}

template <int kDim>
__device__ void publish_state(const StateTile<kDim>& state, bf16_t (*to)[kPaddedRow<kDim>]) {
#pragma unroll
  for (int n = 0; n < StateTile<kDim>::kTiles; ++n) {
    const int column = state.column + 8 * n + state.lane % 4 * 2;
    const int row = state.row + state.lane / 4;
    store_pair(&to[row][column], {state.at[n][0], state.at[n][1]});
    store_pair(&to[row + 8][column], {state.at[n][2], state.at[n][3]});
  }
}

template <int kDim, typename Gate>
__global__ void __launch_bounds__(kThreads, kResident<kDim>)
    read_kernel(const __grid_constant__ Batch batch, const Tensors tensors, const float* states) {
  using Memory = ReadMemory<kDim, Gate>;
  using Tile = Tile<kDim, Gate>;
  extern __shared__ __align__(16) unsigned char shared[];
  Memory& memory = *reinterpret_cast<Memory*>(shared);
  const auto head = static_cast<int>(blockIdx.y);
  const auto warp = static_cast<int>(threadIdx.x / 32);
  const Segment segment = segment_of(batch, static_cast<int>(blockIdx.x));
  const int chunks = (segment.tokens + kChunk - 1) / kChunk;
  const auto first_tile = [&](int chunk) { return TileIndex::at(chunk, tensors.group, warp); };

  copy_chunk(memory, tensors, segment, head, 0);
  Queries<kDim> next;  // of the tile after the one at work: always on their way
  if (first_tile(0).exists()) Tile(tensors, segment, head, first_tile(0)).load(tensors, next);
  StateTile<kDim> state;
  load_state(states + (int64_t{blockIdx.x} * tensors.kv_heads + head) * kDim * kDim, state);

  for (int chunk = 0; chunk < chunks; ++chunk) {
    const auto& values = memory.values[chunk % 2];
    cuda::wait_for_copies<0>();
    __syncthreads();  // the chunk has arrived, and nobody reads the one before any more
    publish_state(state, memory.state);
    ChunkPreparation<kDim, Gate> preparation(memory);
    __syncthreads();
    preparation.finish(tensors.scale, tensors.rectify);
    __syncthreads();
    copy_chunk(memory, tensors, segment, head, chunk + 1);

    for (TileIndex index = first_tile(chunk); index.exists();) {
      const Tile tile(tensors, segment, head, index);
      Queries<kDim> queries = next;
      uint32_t exact[4];
      const bool steep = memory.is_steep(index.sub_chunk);
      if (steep) tile.score_exactly(memory, tensors, queries, exact);
      const int sub_chunk = index.sub_chunk;
      index = index.after(tensors.group);
      const TileIndex ahead = index.exists() ? index : first_tile(chunk + 1);
      if (ahead.chunk < chunks && ahead.exists()) {
        Tile(tensors, segment, head, ahead).load(tensors, next);
      }
      float o[kDim / 8][4] = {};
      const auto compute = [&]<int kIndex>() {
        tile.template compute<kIndex>(memory, values, steep, exact, queries, o);
      };
      sub_chunk == 0 ? compute.template operator()<0>() : compute.template operator()<1>();
      tile.store(tensors, o);
    }
    if (chunk + 1 < chunks) state.template add<kChunk>(memory.decay, memory.ending, values);
  }
}

template <int kDim>
void read(const Tensors& tensors, const Batch& batch, const Scratch& scratch, cudaStream_t stream) {
  with_gate(tensors, [&](auto gate) {
    using Gate = decltype(gate);
    constexpr int kBytes = sizeof(ReadMemory<kDim, Gate>);
    const auto kernel = read_kernel<kDim, Gate>;
    cuda::allow_shared_memory(kernel, kBytes);
    kernel<<<dim3(batch.segments, tensors.kv_heads), kThreads, kBytes, stream>>>(batch, tensors,
                                                                                 scratch.states);
  });
  cuda::check_launch("gated_linear_attention: reading states");
}

}  // namespace

void read_states(const Tensors& tensors, const Batch& batch, const Scratch& scratch,
                 cudaStream_t stream) {
  tensors.key_dim == 128 ? read<128>(tensors, batch, scratch, stream)
                         : read<64>(tensors, batch, scratch, stream);
}

}  // namespace spb::ops::gated
