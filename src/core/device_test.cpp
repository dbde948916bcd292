// Which device words name, and what stands in the way of a card.
#include "core/device.h"

#include <gtest/gtest.h>

#include "core/cuda/cuda.h"
#include "core/cuda/usable.h"
#include "core/test_errors.h"

namespace spb {
namespace {

// A Hopper card that a build for it can use.
cuda::DeviceFacts hopper() {
  return {.driver = 13000,
          .runtime = 13000,
          .count = 2,
          .index = 1,
          .error = "",
          .name = "NVIDIA H100",
          .major = 9,
          .minor = 0,
          .has_image = true,
          .architectures = "80-real, 90a-real"};
}

template <typename Change>
std::string reason(Change change) {
  cuda::DeviceFacts facts = hopper();
  change(facts);
  return cuda::unusable_reason(facts);
}

TEST(UsableDevice, SaysWhatStandsInTheWay) {
  EXPECT_EQ(cuda::unusable_reason(hopper()), "");
  EXPECT_EQ(reason([](auto& f) { f.driver = 14020; }), "");
  EXPECT_EQ(reason([](auto& f) { f.driver = 0; }), "no CUDA driver is loaded");
  EXPECT_EQ(reason([](auto& f) { f.driver = 12040; }),
            "driver too old: expected CUDA 13, got 12.4");
  EXPECT_EQ(reason([](auto& f) { f.error = "all CUDA-capable devices are busy"; }),
            "all CUDA-capable devices are busy");
  EXPECT_EQ(reason([](auto& f) { f.index = 2; }), "no such device: expected an index below 2");
  EXPECT_EQ(reason([](auto& f) { f.index = -1; }), "no such device: expected an index below 2");
}

TEST(UsableDevice, SaysWhichCardsTheBuildIsFor) {
  EXPECT_EQ(reason([](auto& f) {
              f.name = "Tesla T4";
              f.major = 7;
              f.minor = 5;
              f.has_image = false;
            }),
            "card too old: expected compute capability 8.0 or newer, got Tesla T4 of compute "
            "capability 7.5");
  EXPECT_EQ(reason([](auto& f) {
              f.name = "NVIDIA B200";
              f.major = 10;
              f.has_image = false;
            }),
            "no code for this card: expected one of 80-real, 90a-real, which this build is for, "
            "got NVIDIA B200 of compute capability 10.0 (cmake "
            "-DCMAKE_CUDA_ARCHITECTURES=100-real)");
}

// What cannot be asked is not blamed on the card, whose facts are not known then.
TEST(UsableDevice, NamesTheFirstOfSeveralReasons) {
  cuda::DeviceFacts nothing;
  EXPECT_EQ(cuda::unusable_reason(nothing), "no CUDA driver is loaded");
  nothing.driver = nothing.runtime = 13000;
  nothing.error = "cuda: counting devices: no CUDA-capable device is detected";
  EXPECT_EQ(cuda::unusable_reason(nothing), nothing.error);
  nothing.driver = 12000;
  EXPECT_EQ(cuda::unusable_reason(nothing), "driver too old: expected CUDA 13, got 12.0");
}

TEST(DeviceWords, AutoIsTheFirstUsableCardElseTheCpu) {
  const auto usable = [](int index) {
    return [index](int asked) { return std::string(asked == index ? "" : "busy"); };
  };
  EXPECT_EQ(to_string(first_usable(0, usable(0))), "cpu");
  EXPECT_EQ(to_string(first_usable(3, usable(0))), "cuda:0");
  EXPECT_EQ(to_string(first_usable(3, usable(2))), "cuda:2");
  EXPECT_EQ(to_string(first_usable(2, usable(2))), "cpu");
}

TEST(DeviceWords, AreReadOrRefused) {
  EXPECT_EQ(parse_device("cpu"), Device{});
  const bool card = cuda::unusable_reason(0).empty();
  if (card || cuda::device_count() == 0) {
    EXPECT_EQ(to_string(parse_device("auto")), card ? "cuda:0" : "cpu");
  }
  for (const char* word : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999999999",
                           "CPU", "cpu:0", "auto:0"}) {
    EXPECT_EQ(test::message_of(ErrorKind::kUsage, [&] { parse_device(word); }),
              fmt::format("device: expected cpu, cuda, cuda:N or auto, got \"{}\"", word));
  }
  EXPECT_EQ(test::message_of(ErrorKind::kUsage, [] { parse_device("cuda:99"); }),
            fmt::format("device: cuda:99: {}", cuda::unusable_reason(99)));
  EXPECT_FALSE(cuda::unusable_reason(99).empty());
}

// A build without CUDA says which option was off; this says it of either kind of build.
TEST(DeviceWords, NameTheOptionThatABuildWithoutCudaLacks) {
  const std::string reason = cuda::unusable_reason(0);
  if (!reason.starts_with("built without")) return;
  EXPECT_EQ(reason, "built without CUDA (cmake -DSPB_CUDA=ON)");
  test::expect_error(ErrorKind::kUsage, "device: cuda:0: " + reason, [] { parse_device("cuda"); });
  test::expect_error(ErrorKind::kSystem, reason, [] { cuda::Stream stream(0); });
}

}  // namespace
}  // namespace spb
