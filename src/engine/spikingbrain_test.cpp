#include "engine/spikingbrain.h"

#include <gtest/gtest.h>

namespace spikingbrain {
namespace {

std::string problem_of(const std::string& path, const ModelOptions& options) {
  try {
    const Model model(path, options);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(PublicInterface, NamesTheFileThatIsNotThere) {
  EXPECT_NE(problem_of("no/such/model.gguf", {}).find("no/such/model.gguf"), std::string::npos);
}

TEST(PublicInterface, NamesADeviceThatIsNone) {
  const std::string problem = problem_of("model.gguf", {.device = "tpu"});
  EXPECT_NE(problem.find("tpu"), std::string::npos) << problem;
}

}  // namespace
}  // namespace spikingbrain
