#include "engine/text_model.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/error.h"
#include "io/gguf.h"
#include "text/conversation.h"

namespace spb::engine {
namespace {

namespace fs = std::filesystem;

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw_system_error(path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void set_chat_template(TextModel& loaded, const std::string& jinja) {
  try {
    loaded.chat_template = text::ChatTemplate::from_jinja(jinja);
  } catch (const Error& error) {
    // A model without a usable template still completes text; chat says why it cannot.
    loaded.chat_template_problem = error.what();
  }
}

void add_text_parts(TextModel& loaded, const io::GgufMetadata& metadata) {
  if (metadata.get_string("tokenizer.ggml.model").value_or("none") != "none") {
    loaded.tokenizer = text::load_tokenizer_gguf(metadata);
  }
  if (const auto jinja = metadata.get_string("tokenizer.chat_template")) {
    set_chat_template(loaded, *jinja);
  }
}

void add_text_parts(TextModel& loaded, const std::string& folder) {
  const bool has_tokenizer = fs::exists(fs::path(folder) / "tokenizer.json") ||
                             fs::exists(fs::path(folder) / "vocab.json");
  if (has_tokenizer) loaded.tokenizer = text::load_tokenizer_folder(folder);
  if (const auto jinja = text::find_chat_template(folder)) set_chat_template(loaded, *jinja);
}

void check_vocabulary(const TextModel& loaded) {
  if (!loaded.tokenizer) return;
  const int64_t model_vocab = loaded.model->config().vocab_size;
  check_data(loaded.tokenizer->vocab_size() <= model_vocab,
             "{}: tokenizer: expected at most the {} ids the model knows, got {}", loaded.path,
             model_vocab, loaded.tokenizer->vocab_size());
}

}  // namespace

const text::Tokenizer& TextModel::need_tokenizer() const {
  check_data(tokenizer != nullptr, "{}: the model has no tokenizer", path);
  return *tokenizer;
}

const text::ChatTemplate& TextModel::need_chat_template() const {
  check_data(
      chat_template.has_value(), "{}: {}; --template chatml forces ChatML", path,
      chat_template_problem.empty() ? "the model has no chat template" : chat_template_problem);
  return *chat_template;
}

TextModel load_text_model(Context& context, const std::string& path,
                          const model::LoadOptions& options) {
  TextModel loaded;
  loaded.path = path;
  loaded.model = model::Model::load(context, path, options);
  if (const io::GgufMetadata* metadata = loaded.model->metadata()) {
    add_text_parts(loaded, *metadata);
  } else {
    add_text_parts(loaded, path);
  }
  check_vocabulary(loaded);
  return loaded;
}

std::unique_ptr<text::Tokenizer> load_tokenizer(const std::string& path) {
  if (fs::is_directory(path)) return text::load_tokenizer_folder(path);
  if (io::is_gguf(path)) return text::load_tokenizer_gguf(io::GgufFile::open(path)->metadata());
  return text::load_tokenizer_json(read_text(path), path);
}

}  // namespace spb::engine
