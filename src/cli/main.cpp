// spb: the command line of SpikingBrain. Turns errors into one line and an exit status:
// 0 success, 1 a file or the system refused, 2 usage, 130 interrupted.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <new>

#include "cli/command.h"
#include "core/error.h"

namespace {

constexpr int kFailure = 1;
constexpr int kUsage = 2;
constexpr int kInterrupted = 130;

int report(const char* message, int status) {
  fmt::print(stderr, "spb: {}\n", message);
  return status;
}

int status_of(spb::ErrorKind kind) {
  switch (kind) {
    case spb::ErrorKind::kUsage: return kUsage;
    case spb::ErrorKind::kInterrupted: return kInterrupted;
    case spb::ErrorKind::kData:
    case spb::ErrorKind::kSystem: break;
  }
  return kFailure;
}

// The parser itself only says that a command is required.
void check_command(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  spb::check(std::find(names.begin(), names.end(), argv[1]) != names.end(),
             "command: expected one of {}, got '{}'", fmt::join(names, ", "),
             spb::printable(argv[1]));
}

int parse(CLI::App& app, int argc, char** argv) {
  check_command(app, argc, argv);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error);
    return status == 0 ? 0 : kUsage;
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"SpikingBrain: run, convert and measure hybrid-linear language models"};
  app.set_version_flag("--version", "spb " SPB_VERSION);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer("'spb COMMAND --help' shows the options of a command and examples.");
  spb::cli::add_run(app);
  spb::cli::add_chat(app);
  spb::cli::add_convert(app);
  spb::cli::add_quantize(app);
  spb::cli::add_tokenize(app);
  spb::cli::add_inspect(app);
  spb::cli::add_perplexity(app);
  spb::cli::add_spikes(app);
  spb::cli::add_experts(app);
  spb::cli::add_bench(app);
  spb::cli::add_synth(app);
  spb::cli::add_completion(app);
  try {
    return parse(app, argc, argv);
  } catch (const spb::Error& error) {
    return report(error.what(), status_of(error.kind()));
  } catch (const std::bad_alloc&) {
    return report("out of memory", kFailure);
  } catch (const std::exception& error) {
    return report(error.what(), kFailure);
  }
}
