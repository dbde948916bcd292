// The command line as a user meets it: what it prints, and its exit status.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "convert/convert.h"
#include "golden/byte_tokenizer.h"
#include "golden/command.h"
#include "golden/golden_recipe.h"

namespace spb {
namespace {

using golden::Outcome;
using io::read_text;

class CliTest : public testing::Test {
 protected:
  // One model with a tokenizer for all tests: the bytes and ChatML markers, 320 tokens.
  static void SetUpTestSuite() {
    folder_ = std::make_unique<golden::TemporaryFolder>();
    const golden::Case model = golden::read_case("gla_swa_g2_d64_tied");
    golden::write_config(model, DType::kF32, io::Json::object(), folder_->path());
    golden::write_weights(model, DType::kF32, folder_->path());
    golden::write_byte_tokenizer(folder_->path());
    Context context(1);
    convert::convert_model(context, folder_->path(), file("model.gguf"), {.format = DType::kQ8_0});
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static std::string file(const std::string& name) { return folder_->file(name); }
  static std::string model() { return file("model.gguf"); }

  // Runs a script of the shell with `input` as standard input.
  static Outcome shell(const std::string& script, const std::string& input = "") {
    write("script", script);
    write("stdin", input);
    return golden::run_command(*folder_, fmt::format("sh {} <{}", file("script"), file("stdin")));
  }

  static Outcome spb(const std::string& words, const std::string& input = "") {
    return shell(SPB_BINARY " " + words, input);
  }

  static void expect_error(const std::string& words, int status, const std::string& part) {
    const Outcome outcome = spb(words);
    EXPECT_EQ(outcome.status, status) << words << "\n" << outcome.error;
    EXPECT_NE(outcome.error.find(part), std::string::npos) << words << "\n" << outcome.error;
    if (status == 1) {
      EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
    }
  }

  static void write(const std::string& name, const std::string& bytes) {
    std::ofstream(file(name), std::ios::binary) << bytes;
  }

 private:
  static inline std::unique_ptr<golden::TemporaryFolder> folder_;
};

TEST_F(CliTest, UsageErrorsExitWithTwo) {
  expect_error("", 2, "subcommand is required");
  expect_error("dance", 2, "dance");
  expect_error("run", 2, "model");
  expect_error("run " + model() + " --no-such-option", 2, "no-such-option");
  expect_error("run " + model() + " -p x --temperature -1", 2, "temperature");
  expect_error("run " + model() + " -p x --temperature nan", 2, "temperature");
  expect_error("run " + model() + " -p x --top-p 0", 2, "top");
  expect_error("run " + model() + " -p x --min-p 2", 2, "min");
  expect_error("run " + model() + " -p x --repetition-penalty 0", 2, "repetition");
  expect_error("run " + model() + " -p x --logit-bias 5", 2, "logit-bias");
  expect_error("run " + model() + " -p x --logit-bias 99999=1", 2, "99999");
  expect_error("run " + model() + " -p x --context lots", 2, "context");
  expect_error("run " + model() + " -p x --chunk 0", 2, "chunk");
  expect_error("run " + model() + " -p x --activations bf16", 2, "expected a CUDA device");
  expect_error("run " + model() + " -p ''", 2, "at least one token");
  expect_error("run " + model() + " -p x -f y", 2, "both");
  expect_error("run " + model() + " -p x --stop ''", 2, "stop");
  expect_error("tokenize " + model() + " --decode 320", 2, "320");
  expect_error("synth --preset huge -o " + file("x"), 2, "huge");
  expect_error("synth --preset tiny-hybrid --format q4_k -o " + file("x"), 2, "q4_k");
}

// Cards are hidden, so that every machine is one without. Both kinds of builds say why.
TEST_F(CliTest, DevicesThatAreNotThereAreUsageErrors) {
  const std::string run = "CUDA_VISIBLE_DEVICES= " SPB_BINARY " run " + model() + " -p x -n 2 ";
  for (const char* device : {"cuda", "cuda:0", "cuda:99"}) {
    const Outcome outcome = shell(run + "--device " + device);
    EXPECT_EQ(outcome.status, 2) << device;
    EXPECT_EQ(outcome.out, "") << device;
    const std::string name = device == std::string("cuda") ? "cuda:0" : device;
    EXPECT_NE(outcome.error.find(fmt::format("device: {}: ", name)), std::string::npos)
        << outcome.error;
  }
  expect_error("run " + model() + " -p x --device nonsense", 2,
               "device: expected cpu, cuda, cuda:N or auto, got \"nonsense\"");
  const Outcome automatic = shell(run + "--device auto");
  EXPECT_EQ(automatic.status, 0) << automatic.error;
  EXPECT_EQ(automatic.out, shell(run + "--device cpu").out);
}

TEST_F(CliTest, BadFilesExitWithOneLineThatNamesThem) {
  const std::string whole = read_text(model());
  write("empty.gguf", "");
  write("text.gguf", "this is not a model at all");
  write("cut.gguf", whole.substr(0, whole.size() / 2));
  write("header.gguf", whole.substr(0, 30));
  for (const char* name : {"absent.gguf", "empty.gguf", "text.gguf", "cut.gguf", "header.gguf"}) {
    for (const char* command : {"run {} -p x", "inspect {}", "bench {}", "chat {}"}) {
      expect_error(fmt::format(fmt::runtime(command), file(name)), 1, name);
    }
  }
  expect_error("run " + file("") + "nowhere/ -p x", 1, "nowhere");
  expect_error("perplexity " + model() + " -f " + file("absent.txt"), 1, "absent.txt");
  expect_error("convert " + file("nowhere") + " -o " + file("x.gguf"), 1, "nowhere");
}

TEST_F(CliTest, RunContinuesATextReproducibly) {
  const std::string words =
      "run " + model() + " -p 'abc' -n 12 --ignore-end --seed 7 --temperature 1.5 -q";
  const Outcome first = spb(words);
  EXPECT_EQ(first.status, 0) << first.error;
  EXPECT_FALSE(first.out.empty());
  EXPECT_EQ(first.error, "");
  EXPECT_EQ(first.out, spb(words).out);
  EXPECT_EQ(first.out, spb(words + " --threads 1 --chunk 2").out);
  const std::string rest = " -n 12 --ignore-end --seed 7 --temperature 1.5 -q";
  EXPECT_EQ(first.out, spb("run " + model() + rest, "abc").out);
  EXPECT_EQ(first.out, spb("run " + model() + " -f -" + rest, "abc").out);
}

TEST_F(CliTest, RunTellsTokensAndLogProbabilitiesAsJson) {
  const Outcome outcome = spb("run " + model() +
                              " -p 'Grüße' -n 5 --ignore-end --temperature 0 --json "
                              "--top-logprobs 3");
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  const io::Json json = io::parse_json(outcome.out, "stdout");
  EXPECT_EQ(json.at("tokens").size(), 5u);
  EXPECT_EQ(json.at("prompt_tokens"), 7);
  EXPECT_EQ(json.at("finish_reason"), "length");
  for (const io::Json& token : json.at("tokens")) {
    ASSERT_EQ(token.at("top").size(), 3u);
    EXPECT_EQ(token.at("top")[0].at("id"), token.at("id"));  // greedy takes the most probable
    EXPECT_LT(token.at("log_probability").get<double>(), 0.0);
  }
}

TEST_F(CliTest, ChatKeepsTheConversationAndSurvivesACommandItDoesNotKnow) {
  const Outcome outcome =
      spb("chat " + model() + " -n 4 --temperature 0",
          "hello\n/what\n\nagain \\\nand again\n/stats\n/reset\n/stats\n/quit\nnever\n");
  EXPECT_EQ(outcome.status, 0) << outcome.error;
  EXPECT_NE(outcome.out.find("/reset"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.error.find("[0 tokens in the conversation]"), std::string::npos)
      << outcome.error;
}

TEST_F(CliTest, AQuestionThatDoesNotFitTheContextIsAnErrorOnlyWithFullAttention) {
  ASSERT_EQ(spb("synth --preset tiny-hybrid -o " + file("hybrid.gguf")).status, 0);
  // Hybrid layers need no room, whatever --context says.
  EXPECT_EQ(
      spb("bench " + file("hybrid.gguf") + " --prefill 64 --depths 100k -n 2 -r 1 -c 16").status,
      0);
  EXPECT_EQ(spb("run " + model() + " -c 2 -p 'a long prompt' -n 1").status, 0);
}

TEST_F(CliTest, TokenizeGoesThereAndBack) {
  const Outcome ids = spb("tokenize " + model() + " -p 'Grüße <|im_end|>' --ids");
  ASSERT_EQ(ids.status, 0) << ids.error;
  EXPECT_NE(ids.out.find(" 258"), std::string::npos);
  const std::string line = ids.out.substr(0, ids.out.find('\n'));
  EXPECT_EQ(spb("tokenize " + model() + " --decode " + line).out, "Grüße <|im_end|>\n");
  EXPECT_EQ(spb("tokenize " + model() + " -p '<|im_end|>' --ids --no-special").out.find("258"),
            std::string::npos);
}

TEST_F(CliTest, InspectBenchAndPerplexitySpeakJson) {
  const io::Json inspected = io::parse_json(spb("inspect " + model() + " --json").out, "inspect");
  EXPECT_EQ(inspected.at("architecture"), "spikingbrain");
  const io::Json measured = io::parse_json(
      spb("bench " + model() + " --prefill 16 --depths 0,20k -n 2 -r 2 --json").out, "bench");
  ASSERT_EQ(measured.at("results").size(), 3u);
  EXPECT_GT(measured.at("results")[1].at("tokens_per_second").get<double>(), 0.0);
  EXPECT_EQ(measured.at("results")[2].at("random_state"), true);
  write("text.txt", "It was a bright cold day in April, and the clocks were striking thirteen.");
  const io::Json loss = io::parse_json(
      spb("perplexity " + model() + " -f " + file("text.txt") + " -w 32 --json").out, "perplexity");
  EXPECT_EQ(loss.at("predictions"), 73 - 3);
  EXPECT_GT(loss.at("perplexity").get<double>(), 1.0);
}

TEST_F(CliTest, CompletionScriptsAreAcceptedByTheirShells) {
  const Outcome bash = spb("completion bash");
  EXPECT_EQ(bash.status, 0);
  EXPECT_NE(bash.out.find("perplexity"), std::string::npos);
  write("completion.bash", bash.out);
  EXPECT_EQ(std::system(("bash -n " + file("completion.bash")).c_str()), 0);
  EXPECT_NE(spb("completion zsh").out.find("#compdef spb"), std::string::npos);
  EXPECT_NE(spb("completion fish").out.find("complete -c spb"), std::string::npos);
  expect_error("completion tcsh", 2, "tcsh");
}

TEST_F(CliTest, AFullDiskLeavesNothingBehind) {
  // Files may grow to 64 KiB; the signal that goes with it is ignored, as on a full disk.
  const Outcome outcome = shell("trap '' XFSZ; ulimit -f 64; " SPB_BINARY
                                " synth --preset tiny-hybrid --format f32 -o " +
                                file("too_large.gguf"));
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.error.find("too_large.gguf"), std::string::npos) << outcome.error;
  for (const auto& entry : std::filesystem::directory_iterator(file(""))) {
    EXPECT_EQ(entry.path().filename().string().find("too_large"), std::string::npos);
  }
}

TEST_F(CliTest, InterruptEndsCleanlyWithWhatWasWritten) {
  const pid_t child = fork();
  if (child == 0) {
    (void)!std::freopen(file("interrupted").c_str(), "w", stdout);
    execl(SPB_BINARY, SPB_BINARY, "run", model().c_str(), "-p", "abc", "--ignore-end", "-q",
          nullptr);
    _exit(127);
  }
  for (int wait = 0; wait < 200 && read_text(file("interrupted")).empty(); ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  kill(child, SIGINT);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 130);
  const std::string text = read_text(file("interrupted"));
  ASSERT_FALSE(text.empty());
  EXPECT_EQ(text.back(), '\n');
}

TEST_F(CliTest, InspectDrawsAPublishedShapeWithoutAFile) {
  const Outcome drawn = spb("inspect --preset spikingbrain-76b");
  EXPECT_EQ(drawn.status, 0);
  for (const char* line : {"76.06 B, 11.89 B active", "full          ......#......#......#......#",
                           "experts       ...#.#.#.#.#################", "128 learned tokens"}) {
    EXPECT_NE(drawn.out.find(line), std::string::npos) << line;
  }
  EXPECT_EQ(spb("inspect").status, 2);
  EXPECT_EQ(spb("inspect --preset gpt-5").status, 2);
}

TEST_F(CliTest, UpcyclingSaysHowFarTheMixtureIsFromTheDenseModel) {
  const std::string command = "convert " + model() + " -o " + file("moe.gguf") + " --force";
  const Outcome upcycled = spb(command + " --experts 4 --format f32");
  EXPECT_EQ(upcycled.status, 0) << upcycled.error;
  EXPECT_NE(upcycled.out.find("against the dense model"), std::string::npos) << upcycled.out;
  EXPECT_NE(upcycled.out.find("after 64 of 64 tokens"), std::string::npos) << upcycled.out;
  EXPECT_EQ(spb("run " + file("moe.gguf") + " -p hello -n 3 --seed 1").status, 0);
  const Outcome refused = spb(command + " --experts 4 --experts-per-token 5");
  EXPECT_EQ(refused.status, 2) << refused.error;
  EXPECT_NE(refused.error.find("experts per token"), std::string::npos) << refused.error;
}

TEST_F(CliTest, ASpikingModelRunsWithoutFlagsAndTellsOfItsSpikes) {
  const std::string spiking = file("spiking.gguf");
  const Outcome quantized =
      spb("quantize " + model() + " --spike -o " + spiking + " --force --report");
  EXPECT_EQ(quantized.status, 0) << quantized.error;
  EXPECT_NE(quantized.out.find("blk.0.attn_q.weight"), std::string::npos) << quantized.out;
  const std::string command = "run " + spiking + " -p hello -n 4 --temperature 0";
  const Outcome plain = spb(command);
  EXPECT_EQ(plain.status, 0) << plain.error;
  const Outcome told = spb(command + " --spikes --verify-spikes");
  EXPECT_EQ(told.status, 0) << told.error;
  EXPECT_EQ(told.out, plain.out);
  EXPECT_NE(told.error.find("per token"), std::string::npos) << told.error;
  EXPECT_NE(told.error.find("% silent"), std::string::npos) << told.error;
  EXPECT_EQ(spb("bench " + spiking + " --prefill 16 --depths 0 -n 2 -r 1").status, 0);
  const Outcome dense = spb("run " + model() + " -p hello -n 1 --spikes");
  EXPECT_EQ(dense.status, 2);
  EXPECT_NE(dense.error.find("no spiking model"), std::string::npos) << dense.error;
  EXPECT_EQ(spb("quantize " + model() + " --spike --k 0 -o " + file("bad.gguf")).status, 2);
}

}  // namespace
}  // namespace spb
