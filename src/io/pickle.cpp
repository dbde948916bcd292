#include "io/pickle.h"

#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "core/shape.h"
#include "io/pickle_values.h"
#include "io/reader.h"

namespace spb::io {
namespace {

using namespace pickle;

// A checkpoint of 1000 tensors takes 150 kB and 20,000 values.
constexpr uint64_t kMaxPickleBytes = uint64_t{32} << 20;
constexpr size_t kMaxValues = size_t{1} << 20;

std::optional<Value> find_global(std::string_view module, std::string_view name) {
  if (module == "collections" && name == "OrderedDict") return Function::kOrderedDict;
  if (module == "torch._utils") {
    if (name == "_rebuild_tensor_v2") return Function::kRebuildTensor;
    if (name == "_rebuild_parameter") return Function::kRebuildParameter;
    return std::nullopt;
  }
  if (module != "torch" && module != "torch.storage") return std::nullopt;
  static constexpr std::pair<std::string_view, DType> kStorages[] = {
      {"FloatStorage", DType::kF32},     {"HalfStorage", DType::kF16},
      {"BFloat16Storage", DType::kBF16}, {"CharStorage", DType::kI8},
      {"IntStorage", DType::kI32},       {"LongStorage", DType::kI64}};
  for (const auto& [storage, dtype] : kStorages) {
    if (name == storage) return StorageType{dtype};
  }
  return std::nullopt;
}

class Interpreter {
 public:
  Interpreter(std::span<const std::byte> pickle, std::string_view file, uint64_t base)
      : reader_(pickle, file, base) {
    reader_.set_context("pickle");
  }

  std::vector<PickledTensor> run();

 private:
  bool run_constant(Op op);
  bool run_string(Op op);
  bool run_container(Op op);
  bool run_memo(Op op);
  bool run_call(Op op);

  void push(Value value);
  void push_tuple(size_t count);
  Ref pop();
  std::vector<Ref> pop_to_mark();
  int64_t read_long();
  double read_big_endian_double();
  void put_items(Ref target, const std::vector<Ref>& items);
  void append_items(Ref target, const std::vector<Ref>& items);
  void remember(uint64_t slot);
  void recall(uint64_t slot);
  void push_global(std::string_view module, std::string_view name);
  void push_storage(Ref id);
  void reduce(Ref function, Ref arguments);
  void rebuild_tensor(const std::vector<Ref>& arguments);
  std::vector<int64_t> integers(Ref ref, std::string_view what);
  std::vector<PickledTensor> collect(Ref root);

  // The value as a T; data error naming `what` when it is something else.
  template <typename T>
  T& as(Ref ref, std::string_view what) {
    T* value = std::get_if<T>(&values_[ref]);
    reader_.require(value != nullptr, "{}: expected {}, got {}", what, kKinds[Value(T{}).index()],
                    kKinds[values_[ref].index()]);
    return *value;
  }

  Reader reader_;
  std::vector<Value> values_;
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  std::unordered_map<uint64_t, Ref> memo_;
  std::vector<PickledTensor> tensors_;
};

void Interpreter::push(Value value) {
  reader_.require(values_.size() < kMaxValues, "expected at most {} values, got more", kMaxValues);
  stack_.push_back(static_cast<Ref>(values_.size()));
  values_.push_back(std::move(value));
}

Ref Interpreter::pop() {
  const size_t floor = marks_.empty() ? 0 : marks_.back();
  reader_.require(stack_.size() > floor, "stack: expected a value, got none");
  const Ref top = stack_.back();
  stack_.pop_back();
  return top;
}

std::vector<Ref> Interpreter::pop_to_mark() {
  reader_.require(!marks_.empty(), "stack: expected a mark, got none");
  const auto first = stack_.begin() + static_cast<ptrdiff_t>(marks_.back());
  std::vector<Ref> items(first, stack_.end());
  stack_.erase(first, stack_.end());
  marks_.pop_back();
  return items;
}

void Interpreter::push_tuple(size_t count) {
  std::vector<Ref> items(count);
  for (size_t i = count; i-- > 0;) items[i] = pop();
  push(Tuple{std::move(items)});
}

int64_t Interpreter::read_long() {
  const auto count = reader_.read<uint8_t>("integer length");
  reader_.require(count <= 8, "integer: expected at most 8 bytes, got {}", count);
  const auto bytes = reader_.take(count, "integer");
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size(); ++i) value |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  const bool negative = count > 0 && std::to_integer<unsigned>(bytes.back()) >= 0x80;
  if (negative && count < 8) value |= ~uint64_t{0} << (8 * count);
  return static_cast<int64_t>(value);
}

double Interpreter::read_big_endian_double() {
  uint64_t bits = 0;
  for (const std::byte byte : reader_.take(8, "float")) {
    bits = bits << 8 | std::to_integer<uint64_t>(byte);
  }
  return std::bit_cast<double>(bits);
}

bool Interpreter::run_constant(Op op) {
  switch (op) {
    case Op::kNone: push(None{}); return true;
    case Op::kNewTrue: push(true); return true;
    case Op::kNewFalse: push(false); return true;
    case Op::kBinInt: push(int64_t{reader_.read<int32_t>("integer")}); return true;
    case Op::kBinInt1: push(int64_t{reader_.read<uint8_t>("integer")}); return true;
    case Op::kBinInt2: push(int64_t{reader_.read<uint16_t>("integer")}); return true;
    case Op::kLong1: push(read_long()); return true;
    case Op::kBinFloat: push(read_big_endian_double()); return true;
    default: return false;
  }
}

bool Interpreter::run_string(Op op) {
  uint64_t length = 0;
  switch (op) {
    case Op::kShortBinString:
    case Op::kShortBinUnicode: length = reader_.read<uint8_t>("string length"); break;
    case Op::kBinString:
    case Op::kBinUnicode: length = reader_.read<uint32_t>("string length"); break;
    case Op::kBinUnicode8: length = reader_.read<uint64_t>("string length"); break;
    default: return false;
  }
  push(reader_.take_text(length, "string"));
  return true;
}

void Interpreter::put_items(Ref target, const std::vector<Ref>& items) {
  reader_.require(items.size() % 2 == 0, "dictionary: expected keys and values, got {} items",
                  items.size());
  Dict& dict = as<Dict>(target, "SETITEMS");
  for (size_t i = 0; i < items.size(); i += 2) dict.items.emplace_back(items[i], items[i + 1]);
}

void Interpreter::append_items(Ref target, const std::vector<Ref>& items) {
  List& list = as<List>(target, "APPENDS");
  list.items.insert(list.items.end(), items.begin(), items.end());
}

// The container that items go into stays on the stack.
bool Interpreter::run_container(Op op) {
  const auto add_items = [&](auto add, std::vector<Ref> items) {
    const Ref target = pop();
    (this->*add)(target, items);
    stack_.push_back(target);
    return true;
  };
  const auto pop_pair = [&] {
    const Ref value = pop();
    return std::vector<Ref>{pop(), value};
  };
  switch (op) {
    case Op::kMark: marks_.push_back(stack_.size()); return true;
    case Op::kPop: pop(); return true;
    case Op::kPopMark: pop_to_mark(); return true;
    case Op::kEmptyTuple: push(Tuple{}); return true;
    case Op::kEmptyList: push(List{}); return true;
    case Op::kEmptyDict: push(Dict{}); return true;
    case Op::kTuple1: push_tuple(1); return true;
    case Op::kTuple2: push_tuple(2); return true;
    case Op::kTuple3: push_tuple(3); return true;
    case Op::kTuple: push(Tuple{pop_to_mark()}); return true;
    case Op::kAppend: return add_items(&Interpreter::append_items, {pop()});
    case Op::kAppends: return add_items(&Interpreter::append_items, pop_to_mark());
    case Op::kSetItem: return add_items(&Interpreter::put_items, pop_pair());
    case Op::kSetItems: return add_items(&Interpreter::put_items, pop_to_mark());
    default: return false;
  }
}

void Interpreter::remember(uint64_t slot) {
  const Ref top = pop();
  stack_.push_back(top);
  memo_[slot] = top;
}

void Interpreter::recall(uint64_t slot) {
  const auto found = memo_.find(slot);
  reader_.require(found != memo_.end(), "memo: expected a value in slot {}, got none", slot);
  stack_.push_back(found->second);
}

bool Interpreter::run_memo(Op op) {
  switch (op) {
    case Op::kBinPut: remember(reader_.read<uint8_t>("memo slot")); return true;
    case Op::kLongBinPut: remember(reader_.read<uint32_t>("memo slot")); return true;
    case Op::kMemoize: remember(memo_.size()); return true;
    case Op::kBinGet: recall(reader_.read<uint8_t>("memo slot")); return true;
    case Op::kLongBinGet: recall(reader_.read<uint32_t>("memo slot")); return true;
    default: return false;
  }
}

void Interpreter::push_global(std::string_view module, std::string_view name) {
  std::optional<Value> global = find_global(module, name);
  reader_.require(global.has_value(),
                  "global: expected a name that plain tensors need, got '{}.{}'", printable(module),
                  printable(name));
  push(*std::move(global));
}

// ("storage", type, key, device, number of elements)
void Interpreter::push_storage(Ref id) {
  const std::vector<Ref> items = as<Tuple>(id, "persistent id").items;
  reader_.require(items.size() == 5, "persistent id: expected 5 items, got {}", items.size());
  const std::string_view kind = as<std::string_view>(items[0], "persistent id");
  reader_.require(kind == "storage", "persistent id: expected 'storage', got '{}'",
                  printable(kind));
  const DType dtype = as<StorageType>(items[1], "storage type").dtype;
  const std::string_view key = as<std::string_view>(items[2], "storage key");
  push(Storage{dtype, key, as<int64_t>(items[4], "storage size")});
}

std::vector<int64_t> Interpreter::integers(Ref ref, std::string_view what) {
  const std::vector<Ref>& items = as<Tuple>(ref, what).items;
  reader_.require(items.size() <= Shape::kMaxRank, "{}: expected at most {} dimensions, got {}",
                  what, Shape::kMaxRank, items.size());
  std::vector<int64_t> out;
  for (const Ref item : items) out.push_back(as<int64_t>(item, what));
  return out;
}

// (storage, offset, shape, strides, requires_grad, hooks[, metadata])
void Interpreter::rebuild_tensor(const std::vector<Ref>& arguments) {
  reader_.require(arguments.size() == 6 || arguments.size() == 7,
                  "_rebuild_tensor_v2: expected 6 or 7 arguments, got {}", arguments.size());
  const Storage& storage = as<Storage>(arguments[0], "tensor storage");
  PickledTensor tensor;
  tensor.dtype = storage.dtype;
  tensor.storage_key = storage.key;
  tensor.storage_elements = storage.elements;
  tensor.offset = as<int64_t>(arguments[1], "tensor offset");
  tensor.dims = integers(arguments[2], "tensor shape");
  tensor.strides = integers(arguments[3], "tensor strides");
  reader_.require(tensor.dims.size() == tensor.strides.size(),
                  "tensor strides: expected {} of them, got {}", tensor.dims.size(),
                  tensor.strides.size());
  push(TensorIndex{tensors_.size()});
  tensors_.push_back(std::move(tensor));
}

void Interpreter::reduce(Ref function, Ref arguments) {
  const std::vector<Ref> items = as<Tuple>(arguments, "call arguments").items;
  switch (as<Function>(function, "call")) {
    case Function::kOrderedDict:
      reader_.require(items.empty(), "OrderedDict: expected no arguments, got {}", items.size());
      return push(Dict{});
    case Function::kRebuildTensor: return rebuild_tensor(items);
    case Function::kRebuildParameter:
      reader_.require(items.size() == 3, "_rebuild_parameter: expected 3 arguments, got {}",
                      items.size());
      return push(as<TensorIndex>(items[0], "parameter"));
  }
}

bool Interpreter::run_call(Op op) {
  if (op == Op::kGlobal) {
    const std::string_view module = reader_.take_line("module");
    push_global(module, reader_.take_line("global"));
  } else if (op == Op::kStackGlobal) {
    const Ref name = pop();
    const std::string_view module = as<std::string_view>(pop(), "module");
    push_global(module, as<std::string_view>(name, "global"));
  } else if (op == Op::kReduce) {
    const Ref arguments = pop();
    reduce(pop(), arguments);
  } else if (op == Op::kBinPersId) {
    push_storage(pop());
  } else if (op == Op::kBuild) {
    pop();  // attributes of a state dictionary: versions of modules, not tensors
    const Ref target = pop();
    as<Dict>(target, "BUILD");
    stack_.push_back(target);
  } else {
    return false;
  }
  return true;
}

std::vector<PickledTensor> Interpreter::collect(Ref root) {
  std::vector<PickledTensor> named;
  std::unordered_set<std::string_view> names;
  for (const auto& [key, value] : as<Dict>(root, "result").items) {
    const auto* tensor = std::get_if<TensorIndex>(&values_[value]);
    if (tensor == nullptr) continue;
    const std::string_view name = as<std::string_view>(key, "tensor name");
    reader_.require(names.insert(name).second, "tensor '{}': expected once, got twice",
                    printable(name));
    named.push_back(tensors_[tensor->index]);
    named.back().name = name;
  }
  return named;
}

std::vector<PickledTensor> Interpreter::run() {
  reader_.require(reader_.remaining() <= kMaxPickleBytes, "expected at most {} bytes, got {}",
                  kMaxPickleBytes, reader_.remaining());
  for (;;) {
    const auto op = static_cast<Op>(reader_.read<uint8_t>("opcode"));
    if (op == Op::kStop) return collect(pop());
    if (op == Op::kProto) {
      const auto version = reader_.read<uint8_t>("protocol");
      reader_.require(version >= 2 && version <= 5, "protocol: expected 2 to 5, got {}", version);
    } else if (op == Op::kFrame) {
      reader_.read<uint64_t>("frame length");
    } else {
      const bool known =
          run_constant(op) || run_string(op) || run_container(op) || run_memo(op) || run_call(op);
      reader_.require(known, "opcode: expected one that plain tensors need, got {:#04x}",
                      static_cast<unsigned>(op));
    }
  }
}

}  // namespace

std::vector<PickledTensor> read_pickled_tensors(std::span<const std::byte> pickle,
                                                std::string_view file, uint64_t base) {
  return Interpreter(pickle, file, base).run();
}

}  // namespace spb::io
