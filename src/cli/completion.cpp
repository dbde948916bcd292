// spb completion: scripts that complete commands and options, made from the command line itself.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/command.h"

namespace spb::cli {
namespace {

std::vector<const CLI::App*> commands(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<std::string> option_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : commands(app)) names.push_back(command->get_name());
  return names;
}

void print_bash(const CLI::App& app) {
  fmt::print("_spb() {{\n  local current=${{COMP_WORDS[COMP_CWORD]}} options=\n");
  fmt::print(
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n    COMPREPLY=($(compgen -W \"{}\" -- "
      "\"$current\"))\n",
      fmt::join(command_names(app), " "));
  fmt::print("    return\n  fi\n  case ${{COMP_WORDS[1]}} in\n");
  for (const CLI::App* command : commands(app)) {
    fmt::print("    {}) options=\"{}\" ;;\n", command->get_name(),
               fmt::join(option_names(*command), " "));
  }
  fmt::print(
      "  esac\n  case $current in\n    -*) COMPREPLY=($(compgen -W \"$options\" -- \"$current\")) "
      ";;\n"
      "    *) COMPREPLY=($(compgen -f -- \"$current\")) ;;\n  esac\n}}\n"
      "complete -o filenames -F _spb spb\n");
}

// Single quotes end the string of the generated script.
std::string quoted(std::string text) {
  for (size_t at = text.find('\''); at != std::string::npos; at = text.find('\'', at + 4)) {
    text.replace(at, 1, "'\\''");
  }
  return "'" + text + "'";
}

void print_zsh(const CLI::App& app) {
  fmt::print("#compdef spb\n_spb() {{\n  if (( CURRENT == 2 )); then\n    local -a commands=(\n");
  for (const CLI::App* command : commands(app)) {
    fmt::print("      {}\n", quoted(command->get_name() + ":" + command->get_description()));
  }
  fmt::print("    )\n    _describe command commands\n    return\n  fi\n  case $words[2] in\n");
  for (const CLI::App* command : commands(app)) {
    fmt::print("    {}) compadd -- {} ;;\n", command->get_name(),
               fmt::join(option_names(*command), " "));
  }
  fmt::print("  esac\n  _files\n}}\ncompdef _spb spb\n");
}

void print_fish(const CLI::App& app) {
  for (const CLI::App* command : commands(app)) {
    fmt::print("complete -c spb -n __fish_use_subcommand -f -a {} -d {}\n", command->get_name(),
               quoted(command->get_description()));
    for (const CLI::Option* option : command->get_options()) {
      const std::string scope =
          fmt::format("complete -c spb -n '__fish_seen_subcommand_from {}'", command->get_name());
      for (const std::string& name : option->get_lnames()) {
        fmt::print("{} -l {} -d {}\n", scope, name, quoted(option->get_description()));
      }
    }
  }
}

}  // namespace

void add_completion(CLI::App& app) {
  CLI::App* command = app.add_subcommand("completion", "print a script for shell completion");
  auto shell = std::make_shared<std::string>();
  command->add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->footer(
      "Examples:\n"
      "  source <(spb completion bash)\n"
      "  spb completion fish > ~/.config/fish/completions/spb.fish");
  command->callback([&app, shell] {
    if (*shell == "bash") print_bash(app);
    if (*shell == "zsh") print_zsh(app);
    if (*shell == "fish") print_fish(app);
  });
}

}  // namespace spb::cli
