#include "view/spike_events.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/buffer.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/test_source.h"

namespace spb::view {
namespace {

struct Written {
  SpikeBlock block;
  std::vector<int32_t> counts;
  std::vector<float> thresholds;
  int64_t channels = 0;
};

Written block_of(int64_t layer, const char* site, std::vector<int32_t> counts,
                 std::vector<float> thresholds, int64_t channels) {
  Written out;
  out.block.layer = layer;
  out.block.site = site;
  out.block.first_token = 10;
  out.block.position = 4;
  out.counts = std::move(counts);
  out.thresholds = std::move(thresholds);
  out.channels = channels;
  return out;
}

Written random_block(Rng& rng, int64_t tokens, int64_t heads, int64_t channels) {
  Written out = block_of(rng.below(90), "mixer_in", {}, {}, channels);
  out.block.rows_per_token = heads;
  for (int64_t m = 0; m < tokens * heads; ++m) out.thresholds.push_back(rng.uniform(1.0f, 2.0f));
  for (int64_t i = 0; i < tokens * heads * channels; ++i) {
    auto count = static_cast<int32_t>(rng.normal() * 5);
    if (rng.uniform() < 0.05) count *= 3000;
    if (rng.uniform() < 0.02) count = rng.uniform() < 0.5 ? spike::kMaxCount : -spike::kMaxCount;
    out.counts.push_back(count);
  }
  return out;
}

class SpikeEventsTest : public testing::Test {
 protected:
  ~SpikeEventsTest() override { std::filesystem::remove(path_); }

  std::string write(const std::vector<Written>& blocks) {
    SpikeEventWriter writer(path_, "model.gguf", 3.5);
    for (const Written& written : blocks) add(writer, written);
    writer.finish();
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }

  const std::string& path() const { return path_; }

 private:
  static void add(SpikeEventWriter& writer, const Written& written) {
    const Shape shape{std::ssize(written.thresholds), written.channels};
    Tensor core(DType::kI8, shape), thresholds(DType::kF32, Shape{shape[0]});
    spike::SpikeCounts counts;
    for (size_t i = 0; i < written.counts.size(); ++i) {
      const int32_t clamped = std::clamp(written.counts[i], -127, 127);
      core.as<int8_t>()[i] = static_cast<int8_t>(clamped);
      const auto index = static_cast<int64_t>(i);
      if (clamped == written.counts[i]) continue;
      counts.bursts.push_back({static_cast<int32_t>(index / written.channels),
                               static_cast<int32_t>(index % written.channels),
                               written.counts[i] - clamped});
    }
    std::copy(written.thresholds.begin(), written.thresholds.end(), thresholds.as<float>());
    counts.core = core;
    counts.thresholds = thresholds;
    writer.write(written.block, counts);
  }

  std::string path_ = (std::filesystem::temp_directory_path() /
                       ("spike_events_" +
                        std::string(testing::UnitTest::GetInstance()->current_test_info()->name())))
                          .string();
};

void read_all(const std::string& bytes) {
  SpikeEventReader reader(std::as_bytes(std::span(bytes)), "events");
  SpikeEvents events;
  while (reader.next(events)) {
  }
}

std::string refusal(const std::string& bytes) {
  try {
    read_all(bytes);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    return error.what();
  }
  return "accepted";
}

TEST_F(SpikeEventsTest, EveryCountComesBack) {
  Rng rng(5);
  std::vector<Written> blocks;
  for (const auto& [tokens, heads, channels] :
       {std::tuple(1, 1, 1), std::tuple(3, 1, 7), std::tuple(2, 3, 5), std::tuple(9, 4, 64)}) {
    blocks.push_back(random_block(rng, tokens, heads, channels));
  }
  write(blocks);
  SpikeEventReader reader(path());
  EXPECT_EQ(reader.model(), "model.gguf");
  EXPECT_EQ(reader.k(), 3.5);
  SpikeEvents events;
  for (const Written& written : blocks) {
    ASSERT_TRUE(reader.next(events));
    EXPECT_EQ(events.block.layer, written.block.layer);
    EXPECT_EQ(events.block.site, written.block.site);
    EXPECT_EQ(events.block.rows_per_token, written.block.rows_per_token);
    EXPECT_EQ(events.block.first_token, 10);
    EXPECT_EQ(events.block.position, 4);
    EXPECT_EQ(events.rows, std::ssize(written.thresholds));
    EXPECT_EQ(events.channels, written.channels);
    EXPECT_EQ(events.thresholds, written.thresholds);
    EXPECT_EQ(events.counts, written.counts);
  }
  EXPECT_FALSE(reader.next(events));
  EXPECT_FALSE(reader.next(events));
}

// The bytes that the header of this folder promises, so that other programs can rely on it.
TEST_F(SpikeEventsTest, TheLayoutIsTheDocumentedOne) {
  const std::string bytes = write({block_of(2, "query", {-7, 7, 8, 0, -64, 1}, {0.5f, 2.0f}, 3)});
  std::string expected("SPBEVENT\x01\0\0\0", 12);
  expected += std::string("\0\0\0\0\0\0\x0c\x40", 8);                   // 3.5
  expected += std::string("\x0a\0\0\0model.gguf", 14);                  // name
  expected += std::string("\x01\0\0\0\x02\0\0\0\x05\0\0\0query", 17);   // layer 2
  expected += std::string("\x02\0\0\0\x03\0\0\0\x01\0\0\0", 12);        // rows, channels, heads
  expected += std::string("\x0a\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0", 16);  // token, position
  expected += std::string("\0\0\0\x3f\0\0\0\x40", 8);                   // thresholds
  expected += std::string("\x79\x08\x18", 3);                           // -7 7 | 8 0 | -64 1
  expected += std::string("\x02\0\0\0\x10\x7f", 6);                     // 8, -64
  expected += std::string("\0\0\0\0\x01\0\0\0\0\0\0\0", 12);            // end
  EXPECT_EQ(bytes, expected);
}

// Written by a program that knows the documentation alone.
TEST_F(SpikeEventsTest, FilesOfOthersAreRead) {
  SpikeEventReader reader(test::source_root() + "/tests/fixtures/view/two_blocks.events");
  EXPECT_EQ(reader.model(), "model.gguf");
  EXPECT_EQ(reader.k(), 2.5);
  SpikeEvents events;
  ASSERT_TRUE(reader.next(events));
  EXPECT_EQ(events.block.site, "query");
  EXPECT_EQ(events.block.rows_per_token, 2);
  EXPECT_EQ(events.thresholds, (std::vector<float>{0.5f, 0.25f}));
  EXPECT_EQ(events.counts, (std::vector<int32_t>{1, -7, 8, -300, 0, 7}));
  ASSERT_TRUE(reader.next(events));
  EXPECT_EQ(events.block.layer, 11);
  EXPECT_EQ(events.counts, (std::vector<int32_t>{0, -1, 70000, 2, -8}));
  EXPECT_FALSE(reader.next(events));
}

TEST_F(SpikeEventsTest, EveryShortenedFileIsRefused) {
  Rng rng(6);
  const std::string bytes = write({random_block(rng, 2, 1, 9), random_block(rng, 1, 2, 4)});
  for (size_t size = 1; size < bytes.size(); ++size) {
    EXPECT_NE(refusal(bytes.substr(0, size)), "accepted") << size;
  }
  EXPECT_NE(refusal(bytes + "x").find("no more bytes"), std::string::npos);
}

// Damaged bytes give an error or other counts, and nothing worse.
TEST_F(SpikeEventsTest, DamagedFilesAreReadOrRefused) {
  Rng rng(7);
  const std::string bytes = write({random_block(rng, 3, 2, 11), random_block(rng, 2, 1, 30)});
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string damaged = bytes;
    for (int64_t i = rng.below(3); i >= 0; --i) {
      damaged[static_cast<size_t>(rng.below(std::ssize(damaged)))] =
          static_cast<char>(rng.below(256));
    }
    refused += refusal(damaged) != "accepted";
  }
  EXPECT_GT(refused, 1000);
}

TEST_F(SpikeEventsTest, RefusalsSayWhatIsWrong) {
  const std::string bytes = write({block_of(2, "query", {8}, {0.5f}, 1)});
  const auto with = [&](size_t at, uint8_t byte) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(byte);
    return refusal(damaged);
  };
  EXPECT_NE(with(0, 'X').find("magic"), std::string::npos);
  EXPECT_NE(with(8, 2).find("version: expected 1, got 2"), std::string::npos);
  EXPECT_NE(with(19, 0xff).find("k: expected"), std::string::npos);
  EXPECT_NE(with(23, 0xff).find("model's name"), std::string::npos);
  EXPECT_NE(with(34, 9).find("tag: expected 0 or 1"), std::string::npos);
  EXPECT_NE(with(54, 0xff).find("thresholds"), std::string::npos);  // rows
  EXPECT_NE(with(58, 0xff).find("counts"), std::string::npos);      // channels
  EXPECT_NE(with(59, 3).find("divisor"), std::string::npos);        // rows per token
  EXPECT_NE(with(71, 11).find("position"), std::string::npos);
  EXPECT_NE(with(83, 0).find("bytes fewer"), std::string::npos);  // the 8 is no escape
}

}  // namespace
}  // namespace spb::view
