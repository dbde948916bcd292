// spb tokenize: text to ids and back, to see what a model sees.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/options.h"
#include "core/error.h"

namespace spb::cli {
namespace {

struct TokenizeOptions {
  std::string path;
  TextInput input;
  std::vector<int32_t> decode;
  bool ids = false;
  bool json = false;
  bool plain = false;
  bool bos = false;
};

void print_table(const text::Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  for (const int32_t id : ids) {
    const std::string bytes = tokenizer.decode({&id, 1}, true);
    fmt::print("{:>8}  '{}'{}\n", id, printable(bytes),
               tokenizer.is_special(id) ? "  special" : "");
  }
  fmt::print(stderr, "[{} tokens]\n", ids.size());
}

void tokenize(const TokenizeOptions& options) {
  const std::unique_ptr<text::Tokenizer> tokenizer = engine::load_tokenizer(options.path);
  if (!options.decode.empty()) {
    fmt::print("{}\n", tokenizer->decode(options.decode, true));
    return;
  }
  const std::vector<int32_t> ids = tokenizer->encode(
      options.input.read(), {.parse_special = !options.plain, .add_bos = options.bos});
  if (options.json) {
    fmt::print("{}\n", nlohmann::json(ids).dump());
  } else if (options.ids) {
    fmt::print("{}\n", fmt::join(ids, " "));
  } else {
    print_table(*tokenizer, ids);
  }
}

}  // namespace

void add_tokenize(CLI::App& app) {
  CLI::App* command = app.add_subcommand("tokenize", "show the tokens of a text");
  auto options = std::make_shared<TokenizeOptions>();
  command->add_option("model", options->path, "GGUF file, model folder or tokenizer.json")
      ->required()
      ->type_name("MODEL");
  options->input.add_to(*command);
  command->add_option("--decode", options->decode, "turn these ids into text instead")
      ->type_name("ID ...");
  command->add_flag("--ids", options->ids, "only the ids, on one line");
  command->add_flag("--json", options->json, "the ids as a JSON array");
  command->add_flag("--no-special", options->plain, "treat <|...|> as plain text");
  command->add_flag("--bos", options->bos, "begin with the beginning-of-sequence token");
  command->footer(
      "Examples:\n"
      "  spb tokenize model.gguf -p 'Hello, world'\n"
      "  spb tokenize model.gguf -f report.txt --ids | wc -w\n"
      "  spb tokenize model.gguf --decode 19556 28");
  command->callback([options] { tokenize(*options); });
}

}  // namespace spb::cli
