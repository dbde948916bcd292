// Whether this build holds machine code for a card.
#pragma once

namespace spb::cuda {

// System error for a device that cannot be asked.
bool has_kernel_image(int device);

}  // namespace spb::cuda
