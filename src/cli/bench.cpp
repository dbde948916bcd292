// spb bench: load time, prefill and decode speed, and the memory they take.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "core/error.h"
#include "core/isa.h"
#include "core/memory_usage.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "model/decoder.h"
#include "model/random_model.h"

namespace spb::cli {
namespace {

struct BenchOptions {
  ModelOptions model;
  std::string preset;  // random weights instead of a file
  std::string format = "bf16";
  bool random = false;
  bool spiking = false;
  StateFlags state;
  std::string prefill = "512";
  std::string depths = "0,1k";
  int64_t tokens = 64;
  int64_t batch = 1;
  int64_t repeat = 3;
  std::string fill_above = "8k";
  bool json = false;
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Summary {
  double median = 0;
  double low = 0;
  double high = 0;
};

Summary summarize(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  const double median = n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  return {median, values.front(), values.back()};
}

struct Row {
  std::string kind;            // "prefill" or "decode"
  int64_t context = 0;         // prompt length, or depth that decoding starts from
  bool filled = false;         // the depth was filled with random state instead of a real prefill
  Summary rate;                // tokens per second, of all sequences
  double bytes_per_token = 0;  // read while decoding: weights, shared by the batch, and state
  MemoryUsage memory;
};

// What a token of a mixture of experts took out of the mapped file, and what it should have.
struct ExpertTraffic {
  int64_t read = 0;    // bytes; 0: not measured, because the experts are copied
  int64_t active = 0;  // bytes of the chosen experts' matrices
};

// What one decoded token reads: its share of the active weights, the state of linear layers (read
// and written), the keys and values visible to softmax layers.
double decode_bytes(const model::Model& model, const model::StateOptions& options, int64_t depth,
                    int64_t batch) {
  const model::ModelConfig& config = model.config();
  model::StateOptions single = options;
  single.max_chunk = 1;  // the window alone
  const model::StateBytes state = model::state_bytes(config, single, depth + 1);
  return static_cast<double>(model.bytes_per_token()) / static_cast<double>(batch) +
         static_cast<double>(2 * state.recurrent + state.window + state.full);
}

class Bench {
 public:
  Bench(Context& context, const model::Model& model, const BenchOptions& options,
        const std::atomic<bool>* stop)
      : context_(context),
        model_(model),
        options_(options),
        stop_(stop),
        logits_(DType::kF32, Shape{1, model.config().vocab_size}) {}

  Row prefill(int64_t tokens) {
    std::vector<double> rates;
    for (int64_t round = 0; round < options_.repeat; ++round) {
      model::SequenceState state = new_state(tokens);
      const Clock::time_point start = Clock::now();
      feed(state, tokens);
      rates.push_back(static_cast<double>(tokens) / seconds_since(start));
    }
    return {"prefill", tokens, false, summarize(rates), 0, memory_usage()};
  }

  Row decode(int64_t depth) {
    const bool fill = depth > parse_count(options_.fill_above, "--fill-above");
    std::deque<model::SequenceState> states;
    std::vector<model::SequenceState*> pointers;
    for (int64_t i = 0; i < options_.batch; ++i) {
      add_state(states, depth + options_.tokens * options_.repeat + kWarmSteps);
      pointers.push_back(&states.back());
      if (fill) {
        states.back().fill_random(depth, static_cast<uint64_t>(i) + 1);
      } else if (depth > 0) {
        feed(states.back(), depth);
      }
    }
    model::Decoder decoder(context_, model_, pointers);
    for (int step = 0; step < kWarmSteps; ++step) this->step(decoder);
    std::vector<double> rates;
    for (int64_t round = 0; round < options_.repeat; ++round) {
      const Clock::time_point start = Clock::now();
      for (int64_t i = 0; i < options_.tokens; ++i) step(decoder);
      rates.push_back(static_cast<double>(options_.tokens * options_.batch) / seconds_since(start));
    }
    const double bytes =
        decode_bytes(model_, options_.state.state_options(), depth, options_.batch);
    return {"decode", depth, fill, summarize(rates), bytes, memory_usage()};
  }

  // Empties the mapped experts out of memory and counts the pages that one token brings back.
  ExpertTraffic expert_traffic() {
    ExpertTraffic traffic;
    traffic.active = model_.expert_bytes_per_token();
    if (!model_.experts_are_mapped()) return traffic;
    model::SequenceState state = new_state(2);
    feed(state, 1);  // touches everything else
    model_.drop_experts();
    const int64_t before = memory_usage().file;
    feed(state, 1);
    traffic.read = memory_usage().file - before;
    return traffic;
  }

 private:
  model::SequenceState new_state(int64_t context) {
    model::StateOptions options = options_.state.state_options();
    options.max_context = std::max(options.max_context, context);
    return model::SequenceState(model_, options);
  }

  // One sequence more; where memory runs out the error says how many there are.
  void add_state(std::deque<model::SequenceState>& states, int64_t context) {
    try {
      states.push_back(new_state(context));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kSystem || states.empty()) throw;
      throw Error(error.kind(), fmt::format("{}; {} sequences of {} fit (--batch)", error.what(),
                                            states.size(), options_.batch));
    }
  }

  int32_t random_token() { return static_cast<int32_t>(rng_.below(model_.config().vocab_size)); }

  void forward(model::SequenceState& state, std::span<const int32_t> tokens, bool last) {
    if (stop_->load()) fail(ErrorKind::kInterrupted, "bench: interrupted");
    const model::SequenceSlice slice{tokens, &state,
                                     last ? model::Logits::kLast : model::Logits::kNone};
    model::forward(context_, model_, {&slice, 1}, last ? logits_.view() : TensorView(),
                   options_.model.hooks());
  }

  void feed(model::SequenceState& state, int64_t tokens) {
    std::vector<int32_t> chunk;
    for (int64_t done = 0; done < tokens; done += static_cast<int64_t>(chunk.size())) {
      chunk.resize(static_cast<size_t>(std::min(state.max_chunk(), tokens - done)));
      std::generate(chunk.begin(), chunk.end(), [&] { return random_token(); });
      forward(state, chunk, done + static_cast<int64_t>(chunk.size()) == tokens);
    }
  }

  // One token for each sequence; done when the chosen ids could be known to the host.
  void step(model::Decoder& decoder) {
    if (stop_->load()) fail(ErrorKind::kInterrupted, "bench: interrupted");
    std::vector<int32_t> ids(static_cast<size_t>(options_.batch));
    std::generate(ids.begin(), ids.end(), [&] { return random_token(); });
    decoder.step(ids, options_.model.hooks());
    if (context_.device().is_cuda()) context_.stream().synchronize();
  }

  Context& context_;
  const model::Model& model_;
  static constexpr int kWarmSteps = 3;  // touch what a first step touches, and record it

  const BenchOptions& options_;
  const std::atomic<bool>* stop_;
  Tensor logits_;
  Rng rng_{1};
};

// A large copy on a CUDA device, bytes read and written per second.
double copy_bandwidth(Context& context, int64_t bytes) {
  const Tensor from(DType::kI8, Shape{bytes}, context.device());
  Tensor to(DType::kI8, Shape{bytes}, context.device());
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const Clock::time_point start = Clock::now();
    for (int copy = 0; copy < 10; ++copy) copy_tensor(context, from, to);
    context.stream().synchronize();
    best = std::max(best, 20 * static_cast<double>(bytes) / seconds_since(start));
  }
  return best;
}

// Streaming read of memory by all threads, in bytes per second: what decoding could reach.
constexpr int64_t kPrefetchWords = 512;  // 4 KiB ahead
double read_bandwidth(Context& context, int64_t bytes) {
  Buffer buffer(bytes);
  std::fill(buffer.as<uint64_t>(), buffer.as<uint64_t>() + bytes / 8, 1);
  std::vector<uint64_t> sums(static_cast<size_t>(context.pool().threads()));
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const Clock::time_point start = Clock::now();
    context.pool().parallel_for(bytes / 64, 1024, [&](int64_t begin, int64_t end, int thread) {
      uint64_t sum[8] = {};
      const uint64_t* p = buffer.as<uint64_t>() + begin * 8;
      for (; begin < end; ++begin, p += 8) {
        __builtin_prefetch(p + kPrefetchWords);
        for (int i = 0; i < 8; ++i) sum[i] += p[i];
      }
      for (const uint64_t part : sum) sums[static_cast<size_t>(thread)] += part;
    });
    best = std::max(best, static_cast<double>(bytes) / seconds_since(start));
  }
  check(sums[0] > 0, "bench: memory read nothing");
  return best;
}

struct Report {
  double load_seconds = 0;
  double bandwidth = 0;  // bytes per second
  int64_t weight_bytes = 0;
  ExpertTraffic experts;
  std::vector<Row> rows;
};

void print_text(const BenchOptions& options, Context& context, const Report& report) {
  fmt::print("{}\n", options.preset.empty() ? options.model.path : options.preset);
  const Device& device = context.device();
  const std::string where =
      device.is_cuda() ? cuda::device_info(device.index).name : std::string(name(isa()));
  fmt::print("  {}, {} threads, {}, loaded in {:.3f} s, memory {:.1f} GB/s\n", to_string(device),
             context.pool().threads(), where, report.load_seconds, report.bandwidth / 1e9);
  fmt::print("  {:<8} {:>8} {:>12} {:>20} {:>8} {:>10} {:>12}\n", "", "context", "tokens/s",
             "min .. max", "GB/s", "of memory", "resident");
  for (const Row& row : report.rows) {
    const double rate = row.rate.median * row.bytes_per_token;
    const std::string speed = rate > 0 ? fmt::format("{:.1f}", rate / 1e9) : "";
    const std::string share =
        rate > 0 ? fmt::format("{:.0f} %", 100 * rate / report.bandwidth) : "";
    fmt::print("  {:<8} {:>8} {:>12.1f} {:>20} {:>8} {:>10} {:>12}{}\n", row.kind, row.context,
               row.rate.median, fmt::format("{:.1f} .. {:.1f}", row.rate.low, row.rate.high), speed,
               share, format_bytes(row.memory.resident), row.filled ? "  (random state)" : "");
  }
  const auto& [read, active] = report.experts;
  if (active == 0) return;
  fmt::print("  experts: a token uses {} of them", format_bytes(active));
  if (read > 0) {
    fmt::print(" and read {} from the mapped file ({:+.1f} %)", format_bytes(read),
               100.0 * static_cast<double>(read - active) / static_cast<double>(active));
  }
  fmt::print("\n");
}

nlohmann::json to_json(const BenchOptions& options, Context& context, const Report& report) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Row& row : report.rows) {
    rows.push_back({{"kind", row.kind},
                    {"context", row.context},
                    {"random_state", row.filled},
                    {"tokens_per_second", row.rate.median},
                    {"tokens_per_second_min", row.rate.low},
                    {"tokens_per_second_max", row.rate.high},
                    {"bytes_per_token", row.bytes_per_token},
                    {"resident_bytes", row.memory.resident},
                    {"anonymous_bytes", row.memory.anonymous}});
  }
  return {{"model", options.preset.empty() ? options.model.path : options.preset},
          {"device", to_string(context.device())},
          {"batch", options.batch},
          {"threads", context.pool().threads()},
          {"isa", std::string(name(isa()))},
          {"load_seconds", report.load_seconds},
          {"weight_bytes_per_token", report.weight_bytes},
          {"memory_read_bytes_per_second", report.bandwidth},
          {"expert_bytes_per_token", report.experts.active},
          {"expert_bytes_read", report.experts.read},
          {"results", rows}};
}

std::unique_ptr<model::Model> make_model(Context& context, const BenchOptions& options) {
  const model::LoadOptions load = options.model.load_options();
  check(options.model.path.empty() != options.preset.empty(),
        "bench: expected a model file, or --preset with --random");
  if (options.preset.empty()) return model::Model::load(context, options.model.path, load);
  check(options.random, "bench: --preset: expected --random beside it: there is no file to load");
  const DType format = parse_weight_format(options.format, "--format");
  model::ModelConfig config = model::preset(options.preset);
  if (options.spiking) config.spikes.emplace();
  return model::random_model(context, std::move(config), format, 1, load);
}

void bench(const BenchOptions& options) {
  const InterruptGuard interrupt;
  Context context = options.model.make_context();
  Report report;
  const Clock::time_point start = Clock::now();
  const std::unique_ptr<model::Model> model = make_model(context, options);
  report.load_seconds = seconds_since(start);
  report.weight_bytes = model->bytes_per_token();
  constexpr int64_t kBytes = int64_t{1} << 29;
  report.bandwidth = context.device().is_cuda() ? copy_bandwidth(context, kBytes)
                                                : read_bandwidth(context, kBytes);
  Bench runner(context, *model, options, interrupt.flag());
  for (const int64_t tokens : parse_counts(options.prefill, "--prefill")) {
    if (tokens > 0) report.rows.push_back(runner.prefill(tokens));
  }
  for (const int64_t depth : parse_counts(options.depths, "--depths")) {
    report.rows.push_back(runner.decode(depth));
  }
  report.experts = runner.expert_traffic();
  if (options.json) {
    fmt::print("{}\n", to_json(options, context, report).dump(2));
  } else {
    print_text(options, context, report);
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* command = app.add_subcommand("bench", "measure prefill and decode speed");
  auto options = std::make_shared<BenchOptions>();
  options->model.add_to(*command, false);
  command
      ->add_option(
          "--preset", options->preset,
          fmt::format("instead of a file: one of {}", fmt::join(model::preset_names(), ", ")))
      ->type_name("NAME");
  command->add_flag("--random", options->random, "random weights, of the shape of --preset");
  command->add_flag("--w8aspike", options->spiking, "random weights of a spiking model");
  command->add_option("--format", options->format, "of random weights")->capture_default_str();
  command->add_option("--prefill", options->prefill, "prompt lengths; 0 for none")
      ->type_name("LIST")
      ->capture_default_str();
  command->add_option("--depths", options->depths, "contexts to decode at")
      ->type_name("LIST")
      ->capture_default_str();
  command->add_option("-n,--tokens", options->tokens, "tokens decoded per measurement")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--batch", options->batch, "sequences that are decoded together")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("-r,--repeat", options->repeat, "measurements; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      ->add_option("--fill-above", options->fill_above,
                   "deeper contexts start from random state instead of a real prefill")
      ->capture_default_str();
  options->state.add_to(*command);
  command->add_flag("--json", options->json, "one JSON object instead of a table");
  command->footer(
      "GB/s counts the weights and state that one token reads; the share is that of a plain\n"
      "streaming read by all threads, on a CUDA device that of a large copy. Ids are random:\n"
      "choosing them from the logits (sampling) is no part of the time of decoding.\n"
      "Example:\n"
      "  spb bench model.gguf --prefill 512,2k --depths 0,4k,64k,256k\n"
      "  spb bench --preset spikingbrain-7b --random --device cuda --chunk 8k --prefill 128k");
  command->callback([options] { bench(*options); });
}

}  // namespace spb::cli
