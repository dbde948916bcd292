// SpikingBrain as a library: load a model, stream text. The only installed header.
//
//   spikingbrain::Model model("model.gguf");
//   model.generate("Once upon a time", {.max_tokens = 50}, [](std::string_view text) {
//     std::cout << text << std::flush;
//     return true;
//   });
//
// Every failure is a std::runtime_error whose message is one line: where, what, expected, got.
// A Model may be used from one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace spikingbrain {

struct ModelOptions {
  int threads = 0;             // 0: all processors
  int64_t context = 0;         // tokens of room for full-attention layers; 0: the model's own
  bool repack_weights = true;  // false: use the mapped file as it is, for files larger than memory
  std::string device = "cpu";  // or "cuda", "cuda:N", or "auto": a CUDA device where one is usable
};

struct GenerateOptions {
  int64_t max_tokens = -1;   // -1: until the model ends its reply
  bool chat = false;         // put the prompt into the model's chat format
  std::string system;        // system message, with chat
  float temperature = 0.8f;  // 0: greedy
  int32_t top_k = 40;
  float top_p = 0.95f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  uint64_t seed = 1;
  std::vector<std::string> stop_sequences;
};

struct GenerateResult {
  std::string text;
  std::string finish_reason;  // "end", "stop sequence", "length", "context" or "interrupted"
  int64_t prompt_tokens = 0;
  double prompt_seconds = 0;
  int64_t reply_tokens = 0;
  double reply_seconds = 0;
};

class Model {
 public:
  // A GGUF file or the folder of a Hugging Face model.
  explicit Model(const std::string& path, const ModelOptions& options = {});
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  // Receives text as it is generated, always whole UTF-8 characters; returning false stops.
  using TextFunction = std::function<bool(std::string_view text)>;
  GenerateResult generate(const std::string& prompt, const GenerateOptions& options = {},
                          const TextFunction& on_text = {});

  std::vector<int32_t> tokenize(std::string_view text) const;
  std::string detokenize(const std::vector<int32_t>& ids) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace spikingbrain
