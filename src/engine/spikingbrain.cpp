#include "engine/spikingbrain.h"

#include <atomic>

#include "core/context.h"
#include "engine/session.h"

namespace spikingbrain {

struct Model::Impl {
  Impl(const std::string& path, const ModelOptions& options)
      : context(spb::parse_device(options.device), options.threads),
        text_model(spb::engine::load_text_model(context, path, {options.repack_weights})) {
    state.max_context = options.context;
  }

  std::vector<int32_t> prompt_tokens(const std::string& prompt,
                                     const GenerateOptions& options) const {
    const spb::text::Tokenizer& tokenizer = text_model.need_tokenizer();
    if (!options.chat) {
      return tokenizer.encode(prompt, {.parse_special = true, .add_bos = tokenizer.wants_bos()});
    }
    std::vector<spb::text::ChatMessage> messages;
    if (!options.system.empty()) messages.push_back({"system", options.system});
    messages.push_back({"user", prompt});
    return spb::text::encode_chat(tokenizer, text_model.need_chat_template(), messages);
  }

  spb::Context context;
  spb::engine::TextModel text_model;
  spb::model::StateOptions state;
};

namespace {

spb::ops::SamplingSettings sampling_settings(const GenerateOptions& options) {
  spb::ops::SamplingSettings settings;
  settings.temperature = options.temperature;
  settings.top_k = options.top_k;
  settings.top_p = options.top_p;
  settings.min_p = options.min_p;
  settings.repetition_penalty = options.repetition_penalty;
  settings.seed = options.seed;
  spb::ops::check_sampling_settings(settings);
  return settings;
}

}  // namespace

Model::Model(const std::string& path, const ModelOptions& options)
    : impl_(std::make_unique<Impl>(path, options)) {}
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

GenerateResult Model::generate(const std::string& prompt, const GenerateOptions& options,
                               const TextFunction& on_text) {
  std::atomic<bool> stop{false};
  spb::engine::Session session(impl_->context, impl_->text_model, impl_->state,
                               sampling_settings(options), &stop);
  session.prefill(impl_->prompt_tokens(prompt, options));
  GenerateResult result;
  const spb::engine::GenerateOptions settings{.max_tokens = options.max_tokens,
                                              .stop_sequences = options.stop_sequences};
  const auto reason =
      session.generate(settings, [&](const spb::ops::SampledToken& token, std::string_view text) {
        if (token.id >= 0) ++result.reply_tokens;
        result.text += text;
        if (on_text && !text.empty() && !on_text(text)) stop = true;
      });
  result.finish_reason = spb::engine::name(reason);
  result.prompt_tokens = session.times().prompt_tokens;
  result.prompt_seconds = session.times().prompt_seconds;
  result.reply_seconds = session.times().decode_seconds;
  return result;
}

std::vector<int32_t> Model::tokenize(std::string_view text) const {
  return impl_->text_model.need_tokenizer().encode(text);
}

std::string Model::detokenize(const std::vector<int32_t>& ids) const {
  return impl_->text_model.need_tokenizer().decode(ids, true);
}

}  // namespace spikingbrain
