// TextModel: a model with its tokenizer and chat template, as loaded from one path.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "model/model.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace spb::engine {

struct TextModel {
  std::string path;
  std::unique_ptr<model::Model> model;
  std::unique_ptr<text::Tokenizer> tokenizer;       // null when the file has none
  std::optional<text::ChatTemplate> chat_template;  // none when the model ships none
  std::string chat_template_problem;                // why it could not be used, when it exists

  // Data error that says how to go on when the part is missing.
  const text::Tokenizer& need_tokenizer() const;
  const text::ChatTemplate& need_chat_template() const;
};

TextModel load_text_model(Context& context, const std::string& path,
                          const model::LoadOptions& options = {});

// Only the tokenizer of a model file, a model folder or a tokenizer.json.
std::unique_ptr<text::Tokenizer> load_tokenizer(const std::string& path);

}  // namespace spb::engine
