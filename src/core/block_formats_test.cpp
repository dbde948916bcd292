#include "core/block_formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/half.h"
#include "core/rng.h"
#include "core/test_source.h"

namespace spb {
namespace {

std::vector<unsigned char> from_hex(const std::string& hex) {
  std::vector<unsigned char> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<unsigned char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

// The lines of the fixture come from another implementation: tools/make_golden/block_formats.py.
TEST(BlockFormats, DequantizeAsTheReferenceDoes) {
  std::ifstream file(test::source_root() + "/tests/fixtures/core/block_formats.txt");
  std::string format, block_hex, value_hex;
  int lines = 0;
  while (file >> format >> block_hex >> value_hex) {
    const std::optional<DType> dtype = parse_dtype(format);
    ASSERT_TRUE(dtype.has_value()) << format;
    const std::vector<unsigned char> blocks = from_hex(block_hex);
    const std::vector<unsigned char> values = from_hex(value_hex);
    std::vector<float> expected(values.size() / sizeof(float));
    std::memcpy(expected.data(), values.data(), values.size());
    const auto elements = static_cast<int64_t>(expected.size());
    ASSERT_EQ(static_cast<size_t>(row_bytes(*dtype, elements)), blocks.size()) << format;
    std::vector<unsigned char> shifted(blocks.size() + 1);  // rows need no alignment
    std::memcpy(shifted.data() + 1, blocks.data(), blocks.size());
    std::vector<float> actual(expected.size(), NAN);
    dequantize_row(*dtype, shifted.data() + 1, actual.data(), elements);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(actual[i], expected[i]) << format << i;
    ++lines;
  }
  EXPECT_EQ(lines, 8);
}

struct Bound {
  DType dtype;
  double steps;   // largest error in units of the range of a block
  double offset;  // and of its largest magnitude: the rounding of d and m to f16
};

class Quantize : public ::testing::TestWithParam<Bound> {};

INSTANTIATE_TEST_SUITE_P(Formats, Quantize,
                         ::testing::Values(Bound{DType::kF32, 0, 0}, Bound{DType::kF16, 0, 5e-4},
                                           Bound{DType::kBF16, 0, 4e-3},
                                           Bound{DType::kQ8_0, 0, 0.5 / 127 + 5e-4},
                                           Bound{DType::kQ4_0, 0, 1.0 / 8 + 5e-4},
                                           Bound{DType::kQ5_0, 0, 1.0 / 16 + 5e-4},
                                           Bound{DType::kQ4_1, 0.5 / 15 + 5e-4, 5e-4},
                                           Bound{DType::kQ5_1, 0.5 / 31 + 5e-4, 5e-4}),
                         [](const auto& test) { return std::string(name(test.param.dtype)); });

TEST_P(Quantize, ErrorStaysWithinAStep) {
  const Bound bound = GetParam();
  Rng rng(1);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> x(96), y(96, NAN);
    const float scale = std::pow(10.0f, rng.uniform(-2.0f, 2.0f));
    const float shift = trial % 3 == 0 ? 3 * scale : 0.0f;
    for (float& v : x) v = scale * rng.normal() + shift;
    std::vector<std::byte> row(static_cast<size_t>(row_bytes(bound.dtype, 96)));
    quantize_row(bound.dtype, x.data(), row.data(), 96);
    dequantize_row(bound.dtype, row.data(), y.data(), 96);
    for (size_t block = 0; block < 96; block += 32) {
      double low = x[block], high = x[block], largest = 0;
      for (size_t i = block; i < block + 32; ++i) {
        low = std::min<double>(low, x[i]);
        high = std::max<double>(high, x[i]);
        largest = std::max<double>(largest, std::fabs(x[i]));
      }
      for (size_t i = block; i < block + 32; ++i) {
        EXPECT_NEAR(y[i], x[i], bound.steps * (high - low) + bound.offset * largest);
      }
    }
  }
}

TEST_P(Quantize, ZerosAndTinyNumbersStayFinite) {
  for (const float value : {0.0f, 1e-45f, -1e-40f, 1e-38f, -1e-20f}) {
    std::vector<float> x(32, value), y(32, NAN);
    x[7] = 0;
    std::vector<std::byte> row(static_cast<size_t>(row_bytes(GetParam().dtype, 32)));
    quantize_row(GetParam().dtype, x.data(), row.data(), 32);
    dequantize_row(GetParam().dtype, row.data(), y.data(), 32);
    for (const float v : y) EXPECT_LE(std::fabs(v), std::fabs(value) * 1.01f);
  }
}

TEST_P(Quantize, NumbersThatBecomeUselessAreRefused) {
  std::vector<std::byte> row(static_cast<size_t>(row_bytes(GetParam().dtype, 64)));
  const auto kind = [&](float value, float other) {
    std::vector<float> x(64, other);
    x[40] = value;
    try {
      quantize_row(GetParam().dtype, x.data(), row.data(), 64);
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kData ? "data" : "other";
    }
    return "accepted";
  };
  EXPECT_STREQ(kind(NAN, 1), "data");
  EXPECT_STREQ(kind(HUGE_VALF, 1), "data");
  EXPECT_STREQ(kind(-HUGE_VALF, 1), "data");
  EXPECT_STREQ(kind(1000.0f, 1), "accepted");
  const float largest = std::numeric_limits<float>::max();
  EXPECT_STREQ(kind(largest, -largest), GetParam().dtype == DType::kF32 ? "accepted" : "data");
}

TEST(BlockFormats, OtherDTypesAndRaggedRowsAreUsageErrors) {
  float x[256] = {};
  std::byte row[1024];
  const auto message = [](auto body) -> std::string {
    try {
      body();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message([&] { quantize_row(DType::kQ4_K, x, row, 256); }),
            "quantize: dtype: cannot write q4_k");
  EXPECT_EQ(message([&] { dequantize_row(DType::kI8, row, x, 16); }),
            "dequantize: dtype: expected a float or block type, got i8");
  EXPECT_EQ(message([&] { quantize_row(DType::kQ8_0, x, row, 33); }),
            "row of q8_0: expected a multiple of 32 elements, got 33");
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(can_quantize(dtype),
              message([&] { quantize_row(dtype, x, row, 256); }) == "accepted");
  }
}

}  // namespace
}  // namespace spb
