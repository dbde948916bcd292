// What the shapes of queries, keys and values must be, forward and backward.
#pragma once

#include <cmath>

#include "core/error.h"
#include "core/tensor_view.h"

namespace spb::ops {

inline void check_head_shapes(const char* operation, const Shape& q, const Shape& k, const Shape& v,
                              float scale) {
  check(q.rank() == 3 && q[1] > 0 && q[2] > 0,
        "{}: q: expected [tokens, query heads, key_dim], got {}", operation, q.to_string());
  check(k.rank() == 3 && k[0] == q[0] && k[1] > 0 && k[2] == q[2],
        "{}: k: expected [{}, kv heads, {}], got {}", operation, q[0], q[2], k.to_string());
  check(v.rank() == 3 && v[0] == q[0] && v[1] == k[1] && v[2] > 0,
        "{}: v: expected [{}, {}, value_dim], got {}", operation, q[0], k[1], v.to_string());
  check(q[1] % k[1] == 0, "{}: q: expected query heads a multiple of {} kv heads, got {}",
        operation, k[1], q[1]);
  check(std::isfinite(scale), "{}: scale: expected a finite number, got {}", operation, scale);
}

}  // namespace spb::ops
