// The records of a zip archive, without copying them: stored ones only, zip64 included.
//
// Checked: the central directory and every record lie inside the file, records do not overlap each
// other or the directory, names are unique and agree with the local headers. Compressed, encrypted
// and multi-disk archives are refused. Checksums are not verified: a model file is larger than
// anybody wants to read twice.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/mapped_file.h"

namespace spb::io {

struct ZipRecord {
  std::string name;
  std::span<const std::byte> data;
  uint64_t offset = 0;  // of data in the file
};

std::vector<ZipRecord> read_zip(const MappedFile& file);

}  // namespace spb::io
