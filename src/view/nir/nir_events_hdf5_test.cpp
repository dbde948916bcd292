// What the NIR file holds, read back with HDF5 alone.
#include <gtest/gtest.h>
#include <hdf5.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"
#include "view/nir/nir_events.h"

namespace spb::view {
namespace {

constexpr const char* kEvents = "/nodes/layer_3.query/observables/spike_counts/";

class NirEvents : public testing::Test {
 protected:
  ~NirEvents() override { std::filesystem::remove(path_); }

  // Two heads of two channels for each token.
  static void write(NirEventWriter& writer, int64_t first_token, std::vector<int8_t> core,
                    std::vector<spike::Burst> bursts) {
    const int64_t rows = std::ssize(core) / 2;
    Tensor counts(DType::kI8, Shape{rows, 2}), thresholds(DType::kF32, Shape{rows});
    std::copy(core.begin(), core.end(), counts.as<int8_t>());
    spike::SpikeCounts fired;
    fired.core = counts;
    fired.thresholds = thresholds;
    fired.bursts = std::move(bursts);
    writer.write({3, "query", 2, first_token, 0}, fired);
  }

  template <typename T>
  std::vector<T> column(const std::string& name, hid_t type) const {
    const hid_t file = H5Fopen(path_.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
    const hid_t data = H5Dopen2(file, (kEvents + name).c_str(), H5P_DEFAULT);
    const hid_t space = H5Dget_space(data);
    std::vector<T> out(static_cast<size_t>(H5Sget_simple_extent_npoints(space)));
    EXPECT_GE(H5Dread(data, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data()), 0);
    H5Sclose(space);
    H5Dclose(data);
    H5Fclose(file);
    return out;
  }

  template <typename T>
  T attribute(const std::string& name, hid_t type) const {
    const hid_t file = H5Fopen(path_.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
    const hid_t number = H5Aopen_by_name(file, kEvents, name.c_str(), H5P_DEFAULT, H5P_DEFAULT);
    T out{};
    EXPECT_GE(H5Aread(number, type, &out), 0);
    H5Aclose(number);
    H5Fclose(file);
    return out;
  }

  std::string path_ = testing::TempDir() + "spb_nir_test.h5";
};

TEST_F(NirEvents, AreTheCountsThatAreNotZero) {
  NirEventWriter writer(path_);
  write(writer, 5, {1, 0, -3, 127, 0, 0, 0, 2}, {{1, 1, 400}});
  write(writer, 7, {0, 0, 0, 0}, {});
  write(writer, 8, {0, -1, 0, 0}, {});
  EXPECT_FALSE(std::filesystem::exists(path_)) << "not under its name before the end";
  writer.finish();
  EXPECT_EQ(column<int64_t>("idx", H5T_NATIVE_INT64), (std::vector<int64_t>{0, 2, 3, 3, 1}));
  EXPECT_EQ(column<double>("time", H5T_NATIVE_DOUBLE), (std::vector<double>{5, 5, 5, 6, 8}));
  EXPECT_EQ(column<double>("value", H5T_NATIVE_DOUBLE), (std::vector<double>{1, -3, 527, 2, -1}));
  EXPECT_EQ(attribute<int64_t>("n_neurons", H5T_NATIVE_INT64), 4);
  EXPECT_EQ(attribute<double>("t_max", H5T_NATIVE_DOUBLE), 9);
}

TEST_F(NirEvents, LeaveNothingBehindWhenTheyAreNotFinished) {
  {
    NirEventWriter writer(path_);
    write(writer, 0, {1, 1, 1, 1}, {});
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_FALSE(std::filesystem::exists(path_ + ".partial"));
  EXPECT_THROW(NirEventWriter("/nowhere/at/all.h5"), Error);
}

}  // namespace
}  // namespace spb::view
