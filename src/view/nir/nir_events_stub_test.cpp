// Builds without HDF5 say so.
#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.h"
#include "view/nir/nir_events.h"

namespace spb::view {
namespace {

TEST(NirEvents, AreRefusedWithoutHdf5) {
  const std::string path = testing::TempDir() + "spb_nir_stub_test.h5";
  try {
    NirEventWriter writer(path);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(error.what()).find("-DSPB_WITH_HDF5=ON"), std::string::npos);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace spb::view
