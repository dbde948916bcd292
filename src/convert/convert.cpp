#include "convert/convert.h"

#include <filesystem>

#include "core/block_formats.h"
#include "core/error.h"
#include "io/checkpoint.h"
#include "model/config_gguf.h"
#include "model/config_hugging_face.h"
#include "model/model.h"
#include "text/conversation.h"
#include "text/tokenizer.h"

namespace spb::convert {
namespace {

namespace fs = std::filesystem;

// Converts rows of `source` into `out`, split over the pool.
void convert_rows(Context& context, ConstTensorView source, DType dtype, std::span<std::byte> out,
                  const std::string& tensor) {
  const int64_t columns = source.shape().last();
  const int64_t stride = row_bytes(dtype, columns);
  try {
    context.pool().parallel_for(source.shape().rows(), 16, [&](int64_t begin, int64_t end, int) {
      std::vector<float> row(static_cast<size_t>(columns));
      for (int64_t i = begin; i < end; ++i) {
        dequantize_row(source.dtype(), source.row(i), row.data(), columns);
        quantize_row(dtype, row.data(), out.data() + i * stride, columns);
      }
    });
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("tensor '{}': {}", tensor, error.what()));
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

}  // namespace

DType default_embedding_format(DType format) { return is_float(format) ? format : DType::kQ8_0; }

DType storage_dtype(const model::TensorSlot& slot, DType format, DType embedding_format) {
  if (slot.use == model::TensorUse::kVector) return DType::kF32;
  DType wanted = slot.use == model::TensorUse::kEmbedding ? embedding_format : format;
  if (slot.use == model::TensorUse::kSmallMatrix && !is_float(wanted)) wanted = DType::kF16;
  const bool divides = slot.shape.last() % block_elements(wanted) == 0;
  return divides ? wanted : DType::kF16;
}

ConvertResult convert_folder(Context& context, const std::string& folder, const std::string& output,
                             const ConvertSettings& settings, const ProgressFunction& progress) {
  check(settings.overwrite || !fs::exists(output), "{}: the file exists; --force replaces it",
        output);
  const std::unique_ptr<io::TensorSource> source = io::open_checkpoint_folder(folder);
  const auto [config, naming] = model::config_from_hugging_face(folder, *source);
  model::ModelWeights weights = model::bind_weights(config, *source, naming);

  io::GgufMetadata metadata;
  model::config_to_gguf(config, "spikingbrain", metadata);
  add_text_metadata(folder, metadata);

  const DType embedding =
      settings.embedding_format.value_or(default_embedding_format(settings.format));
  std::vector<io::GgufTensorPlan> plans;
  model::for_each_tensor(config, weights, [&](const model::TensorSlot& slot) {
    const std::string name = model::tensor_name(slot, model::Naming::kGguf);
    const DType dtype = storage_dtype(slot, settings.format, embedding);
    const ConstTensorView view = *slot.view;
    plans.push_back({name, dtype, slot.shape, [&context, view, dtype, name](auto out) {
                       convert_rows(context, view, dtype, out, name);
                     }});
  });
  io::write_gguf(output, metadata, plans, progress);
  return {config, static_cast<int64_t>(fs::file_size(output))};
}

}  // namespace spb::convert
