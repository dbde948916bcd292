#include "convert/convert.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "convert/spike_weights.h"
#include "core/block_formats.h"
#include "core/error.h"
#include "model/config_gguf.h"
#include "model/open_model.h"
#include "text/conversation.h"
#include "text/tokenizer.h"

namespace spb::convert {
namespace {

namespace fs = std::filesystem;

// The rows of a tensor to write: those of `source`, repeated downwards and sideways where the
// tensor is larger, times `factor`.
struct Rows {
  ConstTensorView source;
  Shape shape;
  DType dtype;
  float factor;

  bool as_it_is() const {
    return dtype == source.dtype() && factor == 1.0f && shape.last() == source.shape().last();
  }
};

void write_row(const Rows& rows, int64_t index, std::vector<float>& scratch, std::byte* out) {
  const std::byte* row = rows.source.row(index % rows.source.shape().rows());
  const int64_t columns = rows.source.shape().last();
  if (rows.as_it_is()) {
    std::memcpy(out, row, static_cast<size_t>(row_bytes(rows.dtype, columns)));
    return;
  }
  dequantize_row(rows.source.dtype(), row, scratch.data(), columns);
  for (int64_t c = 0; c < columns; ++c) scratch[static_cast<size_t>(c)] *= rows.factor;
  for (int64_t c = columns; c < rows.shape.last(); c += columns) {
    std::copy_n(scratch.begin(), columns, scratch.begin() + c);
  }
  quantize_row(rows.dtype, scratch.data(), out, rows.shape.last());
}

// Splits the rows over the pool.
void write_rows(Context& context, const Rows& rows, std::span<std::byte> out,
                const std::string& tensor) {
  const int64_t stride = row_bytes(rows.dtype, rows.shape.last());
  try {
    context.pool().parallel_for(rows.shape.rows(), 16, [&](int64_t begin, int64_t end, int) {
      std::vector<float> scratch(static_cast<size_t>(rows.shape.last()));
      for (int64_t i = begin; i < end; ++i) write_row(rows, i, scratch, out.data() + i * stride);
    });
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("tensor '{}': {}", tensor, error.what()));
  }
}

// Files of other architectures keep the factors of a scaled RoPE in a tensor of its own.
constexpr const char* kRopeFactors = "rope_freqs.weight";

void copy_text_metadata(const io::GgufMetadata& from, io::GgufMetadata& metadata) {
  for (const io::GgufEntry& entry : from.entries()) {
    if (entry.key.starts_with("tokenizer.")) metadata.set(entry.key, entry.value);
  }
}

void add_text_metadata(const std::string& folder, io::GgufMetadata& metadata) {
  const bool has_tokenizer = fs::exists(fs::path(folder) / "tokenizer.json") ||
                             fs::exists(fs::path(folder) / "vocab.json");
  if (has_tokenizer) {
    text::load_tokenizer_folder(folder)->write_metadata(metadata);
  } else {
    metadata.set("tokenizer.ggml.model", std::string("none"));
  }
  if (const auto jinja = text::find_chat_template(folder)) {
    metadata.set("tokenizer.chat_template", *jinja);
  }
}

io::GgufMetadata make_metadata(const model::OpenModel& opened, const model::ModelConfig& config,
                               const std::string& source) {
  io::GgufMetadata metadata;
  model::config_to_gguf(config, "spikingbrain", metadata);
  if (opened.metadata != nullptr) {
    copy_text_metadata(*opened.metadata, metadata);
  } else {
    add_text_metadata(source, metadata);
  }
  return metadata;
}

bool is_spike_tensor(model::TensorUse use) {
  return use == model::TensorUse::kCodes || use == model::TensorUse::kScales ||
         use == model::TensorUse::kResidual;
}

Importance measure_importance(Context& context, const std::string& source,
                              const model::SpikeConfig& spikes, const ConvertSettings& settings) {
  if (settings.spikes->texts.empty()) return {};
  const auto model = model::Model::load(context, source);
  return calibrate(context, *model, spikes, settings.spikes->texts, settings.calibration_progress);
}

class Writer {
 public:
  Writer(Context& context, const ConvertSettings& settings)
      : context_(context), settings_(settings) {}

  void add(const model::TensorSlot& slot, float factor) {
    const std::string name = model::tensor_name(slot, model::Naming::kGguf);
    const ConstTensorView source = *slot.view;
    add(name, {source, slot.shape, dtype_of(slot, source.dtype()), factor});
  }

  void add(const std::string& name, const Rows& rows) {
    check(rows.as_it_is() || can_quantize(rows.dtype),
          "tensor '{}': {} cannot be written; give a --format", name, spb::name(rows.dtype));
    plans_.push_back({name, rows.dtype, rows.shape, [this, name, rows](std::span<std::byte> out) {
                        write_rows(context_, rows, out, name);
                      }});
  }

  void add_router(const model::TensorSlot& slot, const Upcycling& upcycling) {
    plans_.push_back({model::tensor_name(slot, model::Naming::kGguf), DType::kF32, slot.shape,
                      [slot, &upcycling](std::span<std::byte> out) {
                        auto* values = reinterpret_cast<float*>(out.data());
                        for (int64_t row = 0; row < slot.shape.rows(); ++row) {
                          upcycling.fill_router(slot, row, values + row * slot.shape.last());
                        }
                      }});
  }

  std::vector<io::GgufTensorPlan>& plans() { return plans_; }

 private:
  DType dtype_of(const model::TensorSlot& slot, DType source) const {
    const DType format = settings_.format.value_or(source);
    return storage_dtype(slot, format,
                         settings_.embedding_format.value_or(
                             settings_.format ? default_embedding_format(format) : source));
  }

  Context& context_;
  const ConvertSettings& settings_;
  std::vector<io::GgufTensorPlan> plans_;
};

// Codes cannot become floats again: their matrix has lost what the codes have not.
model::SpikeConfig target_spikes(const std::string& source, const model::ModelConfig& config,
                                 const ConvertSettings& settings) {
  if (!settings.spikes) return *config.spikes;
  model::SpikeConfig spikes{settings.spikes->k};
  apply_rules(settings.spikes->site_k, config.num_layers(), spikes);
  if (!config.spikes) return spikes;
  for (const model::Site site :
       {model::Site::kMixerInput, model::Site::kMixerOutput, model::Site::kFeedForwardInput}) {
    for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
      check(spikes.at(layer, site) > 0 || config.spikes->at(layer, site) == 0,
            "{}: layer {}, site {}: expected a model without codes to leave a site out", source,
            layer, name(site));
    }
  }
  return spikes;
}

// What is to be written: the source as it is, upcycled, or as spikes.
class Target {
 public:
  Target(Context& context, const std::string& source, const model::OpenModel& opened,
         const ConvertSettings& settings)
      : config_(opened.config),
        weights_(model::bind_weights(opened.config, *opened.source, opened.naming)) {
    if (settings.upcycle) {
      check(!settings.spikes && !config_.spikes,
            "{}: a model is upcycled or turned into spikes, not both at once", source);
      upcycling_.emplace(config_, weights_, *settings.upcycle);
      use(*upcycling_);
    } else if (settings.spikes || config_.spikes) {
      const model::SpikeConfig spikes = target_spikes(source, config_, settings);
      if (settings.spikes) importance_ = measure_importance(context, source, spikes, settings);
      spikes_.emplace(context, config_, weights_, spikes, importance_);
      use(*spikes_);
    }
  }
  Target(const Target&) = delete;  // the parts refer to each other
  Target& operator=(const Target&) = delete;

  const model::ModelConfig& config() const { return config_; }

  void plan(Writer& writer) {
    model::for_each_tensor(config_, weights_, [&](const model::TensorSlot& slot) {
      if (is_spike_tensor(slot.use)) {
        spikes_->add(slot, writer.plans());
      } else if (slot.view->defined()) {
        writer.add(slot, upcycling_ ? upcycling_->factor(slot) : 1.0f);
      } else {
        writer.add_router(slot, *upcycling_);
      }
    });
  }

  std::vector<CodeReport> code_reports() const {
    return spikes_ ? spikes_->reports() : std::vector<CodeReport>();
  }

 private:
  template <typename Change>
  void use(Change& change) {
    model::ModelConfig config = change.config();
    weights_ = change.weights();
    config_ = std::move(config);
  }

  model::ModelConfig config_;
  model::ModelWeights weights_;
  std::optional<Upcycling> upcycling_;
  Importance importance_;
  std::optional<SpikeWeights> spikes_;
};

}  // namespace

DType default_embedding_format(DType format) { return is_float(format) ? format : DType::kQ8_0; }

DType storage_dtype(const model::TensorSlot& slot, DType format, DType embedding_format) {
  if (slot.use == model::TensorUse::kVector) return DType::kF32;
  DType wanted = slot.use == model::TensorUse::kEmbedding ? embedding_format : format;
  if (slot.use == model::TensorUse::kSmallMatrix && !is_float(wanted)) wanted = DType::kF16;
  const bool divides = slot.shape.last() % block_elements(wanted) == 0;
  return divides ? wanted : DType::kF16;
}

ConvertResult convert_model(Context& context, const std::string& source, const std::string& output,
                            const ConvertSettings& settings, const ProgressFunction& progress) {
  check(settings.overwrite || !fs::exists(output), "{}: the file exists; --force replaces it",
        output);
  if (settings.spikes) {
    const double k = settings.spikes->k;
    check(k >= 1e-3 && k <= 1e6, "convert: spike k: expected 0.001 to 1000000, got {}", k);
  }
  const model::OpenModel opened = model::open_model(source);
  Target target(context, source, opened, settings);

  Writer writer(context, settings);
  target.plan(writer);
  if (const io::TensorEntry* factors = opened.source->find(kRopeFactors)) {
    writer.add(kRopeFactors, {factors->view, factors->view.shape(), DType::kF32, 1.0f});
  }
  io::write_gguf(output, make_metadata(opened, target.config(), source), writer.plans(), progress);
  return {target.config(), static_cast<int64_t>(fs::file_size(output)), target.code_reports()};
}

}  // namespace spb::convert
