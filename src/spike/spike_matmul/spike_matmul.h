// spike_matmul: spike counts times several matrices of integer weight codes, exactly.
//
//   P_t[i, n, g] = sum over the 128 channels c of group g of code_t[n, c] * s[i, c]
//   a_t[i, n]    = sum over g, ascending, of scale_t[n, g] * P_t[i, n, g]
//   y_t[i, n]    = v[i] * a_t[i, n] + bias_t[n]           (+ y_t[i, n] when accumulate)
//
//   name      shape          dtype                access
//   s         [M, K]         i8 core and bursts   read, from SpikeCounts: core, bursts
//   v         [M]            f32                  read: SpikeCounts::thresholds
//   code_t    [N_t, K]       i8 core, residual    read, through a SpikeWeight
//   scale_t   [N_t, groups]  f32                  read, through a SpikeWeight
//   bias_t    [N_t]          f32                  read; optional, 0 without it
//   y_t       [M, N_t]       f32                  overwritten, or added to; apart from the inputs
//
// Numerics: P is exact. |s| <= 2^24 and |code| <= 2^24, so |P| <= 2^55; it is held in 32 bits where
// core times core needs no more, otherwise in 64. Rounding happens in f32 and always in the same
// places: P to the nearest float (exact below 2^24), one fused multiply-add per group, and one for
// v and the bias, whose result is rounded to the type of y. Accumulating, y and this result are
// added and the sum is rounded once more: y becomes round(y + what would be written without
// accumulate), as if the result had been stored and then added. Therefore every path, instruction
// set and number of threads gives the same bits, and a row of s gives the same y whatever the other
// rows are. Tolerance against the reference: none, the bits are the same.
//
// Paths. The caller may insist on one, otherwise:
//   dense    int8 products of 16 rows of weights at a time; from 9 rows of s on in tiles where the
//            processor has them. Every weight is read once for all rows of s, at most.
//   events   one row of s: only the weights of channels that fire are read, from the channel-major
//            copy. Chosen when event_pays. Forced, it handles the rows of s one after the other.
//   planes   the spike train itself, never chosen: counts are unfolded into signed bits, most
//            significant first, and executed bit by bit with additions and subtractions of weights
//            alone; a sum is doubled by adding it to itself. Shows that the dense product is
//            nothing but spikes. Much slower, and it allocates memory of its own.
// Beyond |s| = 16319 or an excess of more than 127, tiles are not used for that row or matrix.
//
// On a CUDA device y is f32 or bf16, rounded from the f32 result, and counts are those that
// spike_threshold wrote there. How many channels fire is known to the device alone: where all
// weights have channel-major copies and together as many rows as event_pays() wants, both ways are
// queued for one row of s and the device takes one of them. Planes are for the CPU only.
//
// Errors (kUsage): K differs; counts or residual unsorted or out of range; y overlaps an input or
// another y; events forced without the channel-major copy or the list of active channels.
// Cost: 2 M N K operations for dense; N * (firing channels) * 2 for events; every burst and every
// residual code costs a few operations per row more. Source: the SpikingBrain-7B report (2025),
// W8ASpike and equation 23.
#pragma once

#include <span>

#include "core/context.h"
#include "core/tensor_view.h"
#include "spike/spike_matmul/spike_weight.h"
#include "spike/threshold/threshold.h"

namespace spb::spike {

enum class SpikePath { kAutomatic, kDense, kEvents, kPlanes };

struct SpikeMatmulTarget {
  const SpikeWeight* weight = nullptr;
  ConstTensorView bias;  // may be undefined
  TensorView y;
  bool accumulate = false;  // y += instead of y =
};

struct SpikeMatmulArgs {
  const SpikeCounts* counts = nullptr;
  std::span<const SpikeMatmulTarget> targets;
  SpikePath path = SpikePath::kAutomatic;
};

void spike_matmul(Context& context, const SpikeMatmulArgs& args);

// Whether reading only the weights of firing channels is quicker than reading all of them, for one
// row of counts of which `silence` (0 to 1) is zero, and so many rows of weights. A rule fitted to
// measurements; least_silence() is where it begins for large matrices.
bool event_pays(const Device& device, int64_t rows, double silence);
double least_silence(const Device& device);

// Plain loops over the source, as a SpikeWeight is opaque: sums in 64 bits, roundings as above.
void spike_matmul_reference(const SpikeCounts& counts, const SpikeWeightSource& weight,
                            ConstTensorView bias, TensorView y, bool accumulate = false);

}  // namespace spb::spike
