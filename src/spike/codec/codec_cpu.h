// The inside of the codec. Arguments have been checked, counts fit their timesteps.
#pragma once

#include "spike/codec/codec.h"

namespace spb::spike {

void encode_spikes_cpu(Context& context, const EncodeArgs& args);
void decode_spikes_cpu(Context& context, const DecodeArgs& args);

}  // namespace spb::spike
