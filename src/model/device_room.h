// What fits into the memory of a device, said before any of it is asked for.
//
// Checked on CUDA devices only: on the CPU weights stay in the file and caches are backed by memory
// as they are written. Errors are of kind kSystem and name what was asked for, what is free, and
// what would fit.
#pragma once

#include <cstdint>
#include <optional>

#include "model/state.h"
#include "model/weights.h"

namespace spb::model {

struct DeviceRoom {
  Device device;
  int64_t free_bytes = 0;
};

DeviceRoom room_on(const Device& device);  // now; of a CUDA device

// Bytes that the weights take there; with `format`, if their matrices were in it. Matrices in
// formats that kernels cannot read are counted as the f32 they become, tied embeddings twice.
int64_t device_weight_bytes(const ModelConfig& config, const ModelWeights& weights,
                            std::optional<DType> format = std::nullopt);
void check_weights_fit(const ModelConfig& config, const ModelWeights& weights,
                       const DeviceRoom& room);

// Bytes of the activations of one step of `rows` tokens, estimated from below.
int64_t step_bytes(const ModelConfig& config, int64_t rows);

// `context` is what full mixers reserve. The activations of a step are not part of what must fit,
// because a context keeps and reuses them, but of what is recommended instead. Of `weights` formats
// are recommended in which they would be smaller.
void check_state_fits(const ModelConfig& config, const ModelWeights& weights,
                      const StateOptions& options, int64_t context, const DeviceRoom& room);

}  // namespace spb::model
