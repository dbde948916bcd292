// dtype, shape, tensor_view, tensor_check, buffer and arena: what describes and holds tensors.

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "core/arena.h"
#include "core/buffer.h"
#include "core/context.h"
#include "core/tensor_check.h"

namespace spb {
namespace {

template <typename Body>
std::string usage_error(Body body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "accepted";
}

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

TEST(DTypes, NamesComeBackAndRowsAreWholeBlocks) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(parse_dtype(name(dtype)), dtype);
    EXPECT_EQ(is_plain(dtype), block_elements(dtype) == 1);
    EXPECT_EQ(row_bytes(dtype, 512), 512 / block_elements(dtype) * block_bytes(dtype));
    EXPECT_EQ(row_bytes(dtype, 0), 0);
    EXPECT_NE(usage_error([&] { row_bytes(dtype, -block_elements(dtype)); }), "accepted");
  }
  EXPECT_FALSE(parse_dtype("F32").has_value());
  EXPECT_FALSE(parse_dtype("").has_value());
}

TEST(Shapes, DescribeThemselves) {
  const Shape shape{2, 3, 5};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape.last(), 5);
  EXPECT_EQ(shape.rows(), 6);
  EXPECT_EQ(shape.elements(), 30);
  EXPECT_EQ(shape.to_string(), "[2, 3, 5]");
  EXPECT_EQ(fmt::format("{}", shape), "[2, 3, 5]");
  EXPECT_EQ(Shape{}.elements(), 1);
  EXPECT_EQ(Shape{}.to_string(), "[]");
  EXPECT_EQ((Shape{4, 0}.elements()), 0);
  EXPECT_NE((Shape{2, 3}), (Shape{2, 3, 1}));
}

TEST(Shapes, RefuseWhatCannotBe) {
  EXPECT_EQ(usage_error([] { Shape{1, -2}; }), "shape: dimension 1: expected >= 0, got -2");
  EXPECT_EQ(usage_error([] { Shape{1, 1, 1, 1, 1}; }), "shape: rank: expected at most 4, got 5");
  EXPECT_EQ(usage_error([] {
              Shape{int64_t{1} << 40, int64_t{1} << 40};
            }),
            "shape: product of dimensions does not fit in 63 bits");
  EXPECT_EQ(usage_error([] {
              tensor_bytes(DType::kI64, Shape{int64_t{1} << 40, 1 << 22});
            }),
            "tensor: i64 of shape [1099511627776, 4194304] does not fit in 63 bits");
}

TEST(TensorViews, RowsColumnsAndTypes) {
  std::vector<float> data(24);
  for (size_t i = 0; i < 24; ++i) data[i] = static_cast<float>(i);
  const TensorView whole(data.data(), Shape{4, 6});
  EXPECT_TRUE(whole.contiguous());
  EXPECT_EQ(whole.bytes(), 96);
  const TensorView columns(whole.data() + 2 * sizeof(float), DType::kF32, Shape{4, 3},
                           whole.row_stride_bytes());
  EXPECT_FALSE(columns.contiguous());
  EXPECT_EQ(columns.row_as<float>(3)[1], 21.0f);
  EXPECT_EQ(columns.rows(1, 2).row_as<float>(1)[0], 14.0f);
  EXPECT_EQ(whole.reshaped(Shape{2, 12}).row_as<float>(1)[0], 12.0f);
  EXPECT_NE(usage_error([&] { columns.reshaped(Shape{12}); }), "accepted");
  EXPECT_NE(usage_error([&] { whole.reshaped(Shape{5, 5}); }), "accepted");
  EXPECT_NE(usage_error([&] { whole.rows(3, 2); }), "accepted");
  EXPECT_NE(usage_error([&] { whole.rows(kHuge, 1); }), "accepted");
  EXPECT_NE(usage_error([&] { whole.rows(1, kHuge); }), "accepted");
  EXPECT_NE(usage_error([&] { whole.rows(-1, 1); }), "accepted");
  EXPECT_EQ(usage_error([&] { whole.row_as<int32_t>(0); }),
            "tensor view: dtype: expected i32, got f32");
  const ConstTensorView constant = whole.rows(4, 0);
  EXPECT_EQ(constant.shape(), (Shape{0, 6}));  // kept although nothing is there
  EXPECT_FALSE(ConstTensorView(TensorView()).defined());
}

TEST(TensorChecks, NameTheArgument) {
  std::vector<float> data(64);
  const TensorView x(data.data(), Shape{4, 8});
  EXPECT_EQ(usage_error([&] { check_tensor("op", "x", x, DType::kF32, Shape{4, 8}); }), "accepted");
  EXPECT_EQ(usage_error([&] {
              check_tensor("op", "x", x, DType::kF16, Shape{4, 8});
            }),
            "op: x: expected f16 [4, 8], got f32 [4, 8]");
  EXPECT_EQ(usage_error([&] { check_tensor("op", "x", {}, DType::kF32, Shape{}); }),
            "op: x: expected f32 [], got no memory");
  const TensorView odd(x.data(), DType::kF32, Shape{4, 8}, 34);
  EXPECT_EQ(usage_error([&] {
              check_tensor("op", "x", odd, DType::kF32, Shape{4, 8});
            }),
            "op: x: row stride: expected a multiple of 4 bytes and at least 32, got 34");
  const TensorView folded(x.data(), DType::kF32, Shape{4, 8}, 16);
  EXPECT_NE(usage_error([&] {
              check_tensor("op", "x", folded, DType::kF32, Shape{4, 8});
            }),
            "accepted");
}

TEST(TensorChecks, OverlapIsJudgedByTheElementsOfMatrices) {
  std::vector<float> data(64);
  auto* bytes = reinterpret_cast<std::byte*>(data.data());
  const auto view = [&](int64_t first, int64_t rows, int64_t columns, int64_t stride) {
    return TensorView(bytes + 4 * first, DType::kF32, Shape{rows, columns}, 4 * stride);
  };
  const auto overlap = [](const TensorView& a, const TensorView& b) {
    const bool forward = usage_error([&] { check_no_overlap("op", "a", a, "b", b); }) != "accepted";
    const bool backward =
        usage_error([&] { check_no_overlap("op", "b", b, "a", a); }) != "accepted";
    EXPECT_EQ(forward, backward);
    return forward;
  };
  EXPECT_FALSE(overlap(view(0, 4, 4, 8), view(4, 4, 4, 8)));  // columns side by side
  EXPECT_TRUE(overlap(view(0, 4, 5, 8), view(4, 4, 4, 8)));
  EXPECT_TRUE(overlap(view(0, 4, 4, 8), view(6, 4, 4, 8)));  // wraps into the next row
  EXPECT_FALSE(overlap(view(0, 2, 8, 8), view(16, 2, 8, 8)));
  EXPECT_TRUE(overlap(view(0, 2, 8, 8), view(8, 2, 8, 8)));
  EXPECT_FALSE(overlap(view(0, 0, 8, 8), view(0, 2, 8, 8)));
  const TensorView a = view(0, 4, 4, 8);
  EXPECT_EQ(usage_error([&] { check_same_or_no_overlap("op", "a", a, "b", a); }), "accepted");
  EXPECT_NE(usage_error([&] { check_same_or_no_overlap("op", "a", a, "b", view(1, 4, 4, 8)); }),
            "accepted");
}

bool all_zero(const Buffer& buffer) {
  for (int64_t i = 0; i < buffer.bytes(); ++i) {
    if (buffer.data()[i] != std::byte{0}) return false;
  }
  return true;
}

TEST(Buffers, AreZeroedAlignedAndMoved) {
  for (const int64_t bytes : {int64_t{1}, int64_t{63}, int64_t{4096}, int64_t{5} << 20}) {
    Buffer buffer(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % Buffer::kAlignment, 0u);
    EXPECT_TRUE(all_zero(buffer));
    buffer.data()[bytes - 1] = std::byte{7};
    const Buffer copy = buffer.clone();
    Buffer moved = std::move(buffer);
    EXPECT_EQ(moved.data()[bytes - 1], std::byte{7});
    moved = Buffer();
    EXPECT_EQ(copy.data()[bytes - 1], std::byte{7});
    EXPECT_EQ(copy.bytes(), bytes);
  }
  EXPECT_EQ(Buffer(0).data(), nullptr);
  EXPECT_EQ(Buffer().clone().bytes(), 0);
}

TEST(Buffers, SayHowMuchCouldNotBeHad) {
  try {
    Buffer buffer(int64_t{1} << 60);
    FAIL() << "an exbibyte";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kSystem);
    EXPECT_NE(std::string(error.what()).find("1152921504606846976 bytes"), std::string::npos);
  }
  EXPECT_EQ(usage_error([] { Buffer(-1); }), "buffer: bytes: expected >= 0, got -1");
}

TEST(Arenas, ScopesGiveMemoryBackAndNothingIsAllocatedTwice) {
  Arena arena;
  for (int round = 0; round < 3; ++round) {
    const Arena::Scope outer(arena);
    auto* first = arena.allocate<float>(1000);
    first[999] = 1.0f;
    std::byte* inside = nullptr;
    {
      const Arena::Scope inner(arena);
      inside = arena.allocate_bytes(10);
      arena.allocate_bytes(int64_t{9} << 20);  // more than a chunk
    }
    EXPECT_EQ(arena.allocate_bytes(1), inside);
    EXPECT_EQ(first[999], 1.0f);
    EXPECT_EQ(arena.reserved_bytes(), (int64_t{4} << 20) + (int64_t{9} << 20));
  }
}

TEST(Arenas, MemoryIsAlignedAndDisjoint) {
  Arena arena;
  std::vector<std::byte*> ends;
  for (const int64_t bytes : {0, 1, 63, 64, 65, 100000, 5000000, 3}) {
    std::byte* memory = arena.allocate_bytes(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % Buffer::kAlignment, 0u);
    std::fill_n(memory, bytes, static_cast<std::byte>(ends.size()));
    for (size_t i = 0; i < ends.size(); ++i) EXPECT_EQ(ends[i][0], static_cast<std::byte>(i));
    ends.push_back(memory);
    *memory = static_cast<std::byte>(ends.size() - 1);
  }
  const TensorView tensor = arena.tensor(Shape{3, 5});
  EXPECT_EQ(tensor.bytes(), 60);
  EXPECT_TRUE(tensor.contiguous());
}

TEST(Arenas, ImpossibleSizesAreErrors) {
  Arena arena;
  EXPECT_NE(usage_error([&] { arena.allocate_bytes(-1); }), "accepted");
  EXPECT_NE(usage_error([&] { arena.allocate_bytes(kHuge); }), "accepted");
  EXPECT_NE(usage_error([&] { arena.allocate<double>(kHuge / 4); }), "accepted");
  EXPECT_NE(usage_error([&] { arena.tensor(Shape{kHuge / 2}); }), "accepted");
}

}  // namespace
}  // namespace spb
