#include "cli/spikes_energy.h"

#include <algorithm>

#include "core/block_formats.h"

namespace spb::cli {
namespace {

using model::Site;
using spike::DenseFormat;
using spike::MatrixShape;
using spike::SiteEnergy;

constexpr int64_t kStateAccesses = 4;  // f32 read and written, in units of 2 bytes

DenseFormat format_of(DType dtype) {
  return is_float(dtype) ? DenseFormat::kFp16 : DenseFormat::kInt8;
}

class Estimate {
 public:
  Estimate(const model::Model& model, const ActivityRecorder& recorder,
           const spike::EnergyConstants& constants)
      : model_(model), config_(model.config()), recorder_(recorder), constants_(constants) {
    report_.tokens = recorder.tokens();
  }

  EnergyReport run() {
    for (const auto& [key, traffic] : recorder_.traffic()) add_site(key.first, key.second, traffic);
    for (int64_t layer = 0; layer < config_.num_layers(); ++layer) add_unspiked(layer);
    const ops::MatmulWeight& head = model_.head();
    add_dense("head", {config_.hidden_size, head.rows()},
              {recorder_.tokens(), std::ssize(recorder_.calls())}, format_of(head.dtype()));
    add_total();
    return std::move(report_);
  }

 private:
  EnergyPart& part(std::string_view name, std::string_view execution) {
    const auto found = std::find_if(report_.parts.begin(), report_.parts.end(),
                                    [&](const EnergyPart& p) { return p.name == name; });
    if (found == report_.parts.end()) {
      report_.parts.push_back({std::string(name), std::string(execution), {}, {}});
      return report_.parts.back();
    }
    if (found->execution != execution) found->execution = "mixed";
    return *found;
  }

  void add_dense(std::string_view name, MatrixShape matrix, const SiteTraffic& traffic,
                 DenseFormat format) {
    EnergyPart& to = part(name, format == DenseFormat::kInt8 ? "int8" : "fp16");
    matrix.reads = traffic.calls;
    to.together += dense_site_energy(constants_, traffic.rows, matrix, format);
    matrix.reads = traffic.rows;
    to.alone += dense_site_energy(constants_, traffic.rows, matrix, format);
  }

  // The matrices that read a site share its input: their outputs count as those of one.
  void add_site(int64_t index, Site site, const SiteTraffic& traffic) {
    const model::Layer& layer = model_.layer(index);
    const model::Network& network = layer.dense.defined() ? layer.dense : layer.shared;
    switch (site) {
      case Site::kMixerInput:
        add_place(index, site, traffic,
                  {&layer.q, &layer.k, &layer.v, &layer.gate, &layer.gate_down});
        break;
      case Site::kMixerOutput: add_place(index, site, traffic, {&layer.o}); break;
      case Site::kFeedForwardInput:
        add_place(index, site, traffic, {&network.gate, &network.up});
        break;
      case Site::kFeedForwardOutput: add_place(index, site, traffic, {&network.down}); break;
      default: break;  // what attention reads is counted there
    }
  }

  void add_place(int64_t layer, Site site, const SiteTraffic& traffic,
                 std::initializer_list<const model::Projection*> projections) {
    MatrixShape matrix{inputs_of(site, layer), 0, 0};
    const model::Projection* first = nullptr;
    for (const model::Projection* projection : projections) {
      if (!projection->defined()) continue;
      if (first == nullptr) first = projection;
      matrix.outputs += projection->rows();
    }
    if (first == nullptr) return;
    if (first->spikes) {
      add_spiking(layer, site, matrix, traffic);
    } else {
      add_dense(model::name(site), matrix, traffic, format_of(first->weight.dtype()));
    }
  }

  int64_t inputs_of(Site site, int64_t layer) const {
    if (site == Site::kMixerOutput) return config_.query_size();
    if (site != Site::kFeedForwardOutput) return config_.hidden_size;
    const model::Layer& l = model_.layer(layer);
    return l.dense.defined() ? l.dense.gate.rows() : l.shared.gate.rows();
  }

  void add_spiking(int64_t layer, Site site, MatrixShape matrix, const SiteTraffic& traffic) {
    spike::SpikeStatistics all;
    for (const auto& [key, statistics] : recorder_.statistics()) {
      if (key.layer == layer && key.site == model::name(site)) all.merge(statistics);
    }
    EnergyPart& to = part(model::name(site), "spikes");
    matrix.reads = traffic.calls;
    to.together += spiking_site_energy(constants_, all, matrix, spike::WeightFetch::kShared);
    matrix.reads = traffic.rows;
    to.alone += spiking_site_energy(constants_, all, matrix, spike::WeightFetch::kEventDriven);
  }

  void add_unspiked(int64_t index) {
    const model::Layer& layer = model_.layer(index);
    if (layer.gate_up.defined()) {
      add_dense("gate", {config_.gate_low_rank, config_.kv_size()}, all_rows(),
                format_of(layer.gate_up.weight.dtype()));
    }
    for (const model::Mixer mixer : layer.config.mixers) {
      if (mixer == model::Mixer::kLinear) {
        add_recurrent_state();
      } else {
        add_attention(mixer);
      }
    }
    if (!layer.experts.weights.empty()) add_experts(layer.experts);
  }

  SiteTraffic all_rows() const { return {recorder_.tokens(), std::ssize(recorder_.calls())}; }

  // Scores and sums of values over the visible positions, in two products of the same size.
  void add_attention(model::Mixer mixer) {
    EnergyPart& to = part("attention", "fp16");
    const auto add = [&](SiteEnergy& sum, int64_t rows, int64_t visible, int64_t reads) {
      const MatrixShape matrix{config_.head_dim, visible, reads};
      sum += dense_site_energy(constants_, rows, matrix, DenseFormat::kFp16);
      sum += dense_site_energy(constants_, rows, {visible, config_.head_dim, reads},
                               DenseFormat::kFp16);
    };
    for (const engine::TextChunk& call : recorder_.calls()) {
      int64_t visible = 0;
      for (int64_t i = 0; i < call.count; ++i) {
        visible = call.position + i + 1;
        if (mixer == model::Mixer::kWindow) visible = std::min(visible, config_.visible_window());
        visible += config_.sink_tokens;
        add(to.alone, config_.num_heads, visible, config_.num_kv_heads);
        add(to.together, config_.num_heads, visible, 0);
      }
      add(to.together, 0, visible, config_.num_kv_heads);
    }
  }

  // Every token decays a state, adds to it and reads it once for each query head.
  void add_recurrent_state() {
    EnergyPart& to = part("recurrent state", "fp16");
    const int64_t tokens = recorder_.tokens();
    const int64_t rows = tokens * (2 * config_.num_kv_heads + config_.num_heads);
    const int64_t reads = kStateAccesses * config_.num_kv_heads;
    const int64_t d = config_.head_dim;
    to.alone += dense_site_energy(constants_, rows, {d, d, reads * tokens}, DenseFormat::kFp16);
    to.together += dense_site_energy(
        constants_, rows, {d, d, reads * std::ssize(recorder_.calls())}, DenseFormat::kFp16);
  }

  // A call fetches at most every expert once.
  void add_experts(const model::Experts& experts) {
    const model::MoeConfig& moe = config_.moe;
    const DenseFormat format = format_of(experts.weights.front().dtype());
    SiteTraffic traffic{recorder_.tokens() * moe.experts_per_token, 0};
    for (const engine::TextChunk& call : recorder_.calls()) {
      traffic.calls += std::min(moe.num_experts, call.count * moe.experts_per_token);
    }
    add_dense("experts", {config_.hidden_size, 2 * moe.expert_size}, traffic, format);
    add_dense("experts", {moe.expert_size, config_.hidden_size}, traffic, format);
    add_dense("router", {config_.hidden_size, moe.num_experts}, all_rows(), DenseFormat::kFp16);
  }

  void add_total() {
    EnergyPart total{"total", "", {}, {}};
    for (const EnergyPart& p : report_.parts) {
      total.together += p.together;
      total.alone += p.alone;
    }
    report_.parts.push_back(std::move(total));
  }

  const model::Model& model_;
  const model::ModelConfig& config_;
  const ActivityRecorder& recorder_;
  const spike::EnergyConstants& constants_;
  EnergyReport report_;
};

}  // namespace

EnergyReport estimate_energy(const model::Model& model, const ActivityRecorder& recorder,
                             const spike::EnergyConstants& constants) {
  return Estimate(model, recorder, constants).run();
}

}  // namespace spb::cli
