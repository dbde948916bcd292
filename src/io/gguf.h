// GGUF version 3: metadata and tensors in one little-endian file, or in several split ones.
//
// Reading maps the file and checks everything before it returns: magic, version, counts, string and
// array lengths against the bytes left, alignment (a power of two, 8 to 1 MiB), types, duplicate
// keys and names, dimensions (1 to 4, product without overflow), block multiples, and that tensor
// data lies inside the file without overlapping. Big-endian files and versions other than 2 and 3
// are refused. Split files "name-00001-of-00003.gguf" are opened through their first part. Writing
// goes to a temporary name and is renamed at the end: nothing half-written is left behind. Layout,
// limits and the keys of our own architecture: docs/formats.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "io/tensor_source.h"

namespace spb::io {

// A metadata value: integers widened to 64 bits, arrays of one element type. Reading yields
// uint64_t only for what does not fit in int64_t, so equal numbers compare equal whatever width the
// file used.
using GgufArray = std::variant<std::vector<int64_t>, std::vector<double>, std::vector<bool>,
                               std::vector<std::string>>;
using GgufValue = std::variant<int64_t, uint64_t, double, bool, std::string, GgufArray>;

struct GgufEntry {
  std::string key;
  GgufValue value;
};

// Metadata with typed access. The `get` family returns nullopt when the key is absent and throws a
// data error naming file, key, expected and found type when the type differs.
class GgufMetadata {
 public:
  const std::vector<GgufEntry>& entries() const { return entries_; }
  const GgufValue* find(std::string_view key) const;

  std::optional<int64_t> get_integer(std::string_view key) const;
  std::optional<double> get_number(std::string_view key) const;  // integers too
  std::optional<bool> get_bool(std::string_view key) const;
  std::optional<std::string> get_string(std::string_view key) const;
  // Pointers into the metadata; nullptr when absent.
  const std::vector<std::string>* get_strings(std::string_view key) const;
  const std::vector<int64_t>* get_integers(std::string_view key) const;
  const std::vector<double>* get_numbers(std::string_view key) const;  // of float elements

  void set(std::string key, GgufValue value);                     // replaces an earlier value
  void set_source(std::string path) { path_ = std::move(path); }  // for messages

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view key) const { return std::hash<std::string_view>()(key); }
  };

  std::vector<GgufEntry> entries_;
  std::unordered_map<std::string, size_t, Hash, std::equal_to<>> index_;
  std::string path_;
};

class GgufFile : public TensorSource {
 public:
  // Data or system error naming the file, and the byte where it is wrong.
  static std::unique_ptr<GgufFile> open(const std::string& path);

  virtual const GgufMetadata& metadata() const = 0;  // of the first part of a split file
  virtual int64_t file_bytes() const = 0;            // all parts
};

// The same from bytes in memory, which are copied; `name` stands for the path in messages.
std::unique_ptr<GgufFile> open_gguf_bytes(std::span<const std::byte> bytes, std::string name);

bool is_gguf(const std::string& path);  // by its magic; false when unreadable

// Writes metadata and tensors. Tensor data comes from a callback, one tensor at a time, so that a
// model larger than memory can be converted.
struct GgufTensorPlan {
  std::string name;
  DType dtype;
  Shape shape;  // outermost first
  // Fills exactly row_bytes * rows bytes, whose content before the call is unspecified.
  std::function<void(std::span<std::byte>)> fill;
};

// Numbers are written in the type that other readers of GGUF expect: integers as u32 where they fit
// (negative ones i32, large ones u64 or i64), f32 for doubles in its range, arrays of integers as
// i32 where all fit (else i64), arrays of doubles as f32. Keys "split.*" are left out: the result
// is one file. Data is aligned to "general.alignment" of the metadata, else 32. Usage error on
// invalid names, shapes or dtypes; system error when the disk is full. `progress(done, total)`
// counts bytes of tensor data; may be empty.
void write_gguf(const std::string& path, const GgufMetadata& metadata,
                std::span<const GgufTensorPlan> tensors,
                const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace spb::io
