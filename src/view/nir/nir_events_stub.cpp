#include "core/error.h"
#include "view/nir/nir_events.h"

namespace spb::view {

struct NirEventWriter::Impl {};

NirEventWriter::NirEventWriter(const std::string&) {
  fail(ErrorKind::kUsage,
       "NIR events: this spb was built without HDF5; build it with -DSPB_WITH_HDF5=ON");
}

NirEventWriter::~NirEventWriter() = default;

void NirEventWriter::write(const SpikeBlock&, const spike::SpikeCounts&) {}
void NirEventWriter::finish() {}

}  // namespace spb::view
