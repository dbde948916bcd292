#include "ops/gated_linear_attention/gated_linear_attention.h"

#include <cmath>

#include "core/tensor_check.h"
#include "ops/gated_linear_attention/gated_linear_attention_cpu.h"

namespace spb::ops {
namespace {

constexpr const char* kName = "gated_linear_attention";

void check_contiguous(const char* argument, const ConstTensorView& tensor) {
  check(tensor.contiguous(),
        "{}: {}: expected contiguous rows, got a row stride of {} bytes for {}", kName, argument,
        tensor.row_stride_bytes(), tensor.row_bytes_used());
}

void check_args(const GatedLinearAttentionArgs& args) {
  const Shape& q = args.q.shape();
  const Shape& k = args.k.shape();
  const Shape& v = args.v.shape();
  check(q.rank() == 3 && q[1] > 0 && q[2] > 0,
        "{}: q: expected [tokens, query heads, key_dim], got {}", kName, q.to_string());
  check(k.rank() == 3 && k[0] == q[0] && k[1] > 0 && k[2] == q[2],
        "{}: k: expected [{}, kv heads, {}], got {}", kName, q[0], q[2], k.to_string());
  check(v.rank() == 3 && v[0] == q[0] && v[1] == k[1] && v[2] > 0,
        "{}: v: expected [{}, {}, value_dim], got {}", kName, q[0], k[1], v.to_string());
  check(q[1] % k[1] == 0, "{}: q: expected query heads a multiple of {} kv heads, got {}", kName,
        k[1], q[1]);
  check(std::isfinite(args.scale), "{}: scale: expected a finite number, got {}", kName,
        args.scale);
  check_tensor(kName, "q", args.q, DType::kF32, q);
  check_tensor(kName, "k", args.k, DType::kF32, k);
  check_tensor(kName, "v", args.v, DType::kF32, v);
  check_tensor(kName, "g", args.g, DType::kF32, k);
  check_tensor(kName, "state", args.state, DType::kF32, Shape{k[1], k[2], v[2]});
  check_tensor(kName, "o", args.o, DType::kF32, Shape{q[0], q[1], v[2]});
  check_contiguous("q", args.q);
  check_contiguous("k", args.k);
  check_contiguous("v", args.v);
  check_contiguous("g", args.g);
  check_contiguous("state", args.state);
  check_contiguous("o", args.o);
  check_same_or_no_overlap(kName, "q", args.q, "o", args.o);
  check_no_overlap(kName, "k", args.k, "o", args.o);
  check_no_overlap(kName, "v", args.v, "o", args.o);
  check_no_overlap(kName, "g", args.g, "o", args.o);
  check_no_overlap(kName, "state", args.state, "o", args.o);
  check_no_overlap(kName, "q", args.q, "state", args.state);
  check_no_overlap(kName, "k", args.k, "state", args.state);
  check_no_overlap(kName, "v", args.v, "state", args.state);
  check_no_overlap(kName, "g", args.g, "state", args.state);
}

}  // namespace

void gated_linear_attention(Context& context, const GatedLinearAttentionArgs& args) {
  check_args(args);
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

}  // namespace spb::ops
