// Loads a model and streams its answer: build with find_package(spikingbrain), see CMakeLists.txt.
#include <spikingbrain/spikingbrain.h>

#include <exception>
#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: stream_text MODEL QUESTION\n";
    return 2;
  }
  try {
    spikingbrain::Model model(argv[1]);
    spikingbrain::GenerateOptions options;
    options.chat = true;
    options.max_tokens = 200;
    options.temperature = 0;

    const spikingbrain::GenerateResult result =
        model.generate(argv[2], options, [](std::string_view text) {
          std::cout << text << std::flush;
          return true;  // false would stop the reply here
        });

    std::cout << "\n[" << result.reply_tokens << " tokens, "
              << static_cast<double>(result.reply_tokens) / result.reply_seconds
              << " tokens/s, finished by: " << result.finish_reason << "]\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "stream_text: " << error.what() << '\n';
    return 1;
  }
}
