#include "core/cuda/blas.h"

#include <dlfcn.h>
#include <library_types.h>

#include <array>
#include <map>

#include "core/buffer.h"
#include "core/cuda/blas_api.h"
#include "core/cuda/runtime.h"

namespace spb::cuda {
namespace {

using namespace blas_api;

// cuBLASLt asks for up to this much scratch memory on Hopper; less makes it choose slower kernels.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

Functions load_functions() {
  const char* soname = "libcublasLt.so.13";
  void* library = dlopen(soname, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail(ErrorKind::kSystem, "cuda: loading {}: {}", soname, dlerror());
  const auto find = [&](auto& function, const char* name) {
    void* symbol = dlsym(library, name);
    if (symbol == nullptr) fail(ErrorKind::kSystem, "cuda: {}: no function {}", soname, name);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
  Functions f{};
  find(f.cublasLtCreate, "cublasLtCreate");
  find(f.cublasLtDestroy, "cublasLtDestroy");
  find(f.cublasLtGetStatusString, "cublasLtGetStatusString");
  find(f.cublasLtMatmulDescCreate, "cublasLtMatmulDescCreate");
  find(f.cublasLtMatmulDescDestroy, "cublasLtMatmulDescDestroy");
  find(f.cublasLtMatmulDescSetAttribute, "cublasLtMatmulDescSetAttribute");
  find(f.cublasLtMatrixLayoutCreate, "cublasLtMatrixLayoutCreate");
  find(f.cublasLtMatrixLayoutDestroy, "cublasLtMatrixLayoutDestroy");
  find(f.cublasLtMatmulPreferenceCreate, "cublasLtMatmulPreferenceCreate");
  find(f.cublasLtMatmulPreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
  find(f.cublasLtMatmulPreferenceSetAttribute, "cublasLtMatmulPreferenceSetAttribute");
  find(f.cublasLtMatmulAlgoGetHeuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(f.cublasLtMatmul, "cublasLtMatmul");
  return f;
}

const Functions& functions() {
  static const Functions kFunctions = load_functions();
  return kFunctions;
}

int type_of(DType dtype) { return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

void check_status(int status, const DenseProduct& p) {
  if (status == kSuccess) return;
  fail(ErrorKind::kSystem, "cuda: product of {} [{}, {}] and [{}, {}]: {}", name(p.dtype), p.m, p.k,
       p.n, p.k, functions().cublasLtGetStatusString(status));
}

// Plans are a few hundred bytes each; prompts of ever new lengths must not add them up for ever.
constexpr size_t kMostPlans = 1024;

// The library takes for granted that matrices start at multiples of 256 bytes, but its kernels read
// at most 16 at once. It is told of matrices that start at less than that.
constexpr uint32_t kWholeRead = 16;

// The largest power of two, up to 16, that divides the addresses of all three matrices.
uint32_t alignment_of(const DenseProduct& p) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.w) |
                         reinterpret_cast<uintptr_t>(p.y) | kWholeRead;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// What decides which kernel is best.
using Key = std::array<int64_t, 11>;
Key key_of(const DenseProduct& p) {
  return {p.m,
          p.n,
          p.k,
          p.x_stride,
          p.w_stride,
          p.y_stride,
          static_cast<int64_t>(p.dtype),
          static_cast<int64_t>(p.y_dtype),
          p.bias != nullptr,
          p.accumulate,
          alignment_of(p)};
}

// Column-major as the library counts: y^T [n, m] = w [n, k] x^T [k, m].
class Plan {
 public:
  Plan() = default;
  void prepare(Handle handle, const DenseProduct& p) {
    const Functions& f = functions();
    check_status(f.cublasLtMatmulDescCreate(&desc, kComputeF32, CUDA_R_32F), p);
    set(kDescTransposeA, kTransposed, p);
    if (p.bias != nullptr) {
      set(kDescEpilogue, kEpilogueBias, p);
      set(kDescBiasType, type_of(p.y_dtype), p);
    }
    layout(w, p.dtype, p.k, p.n, p.w_stride, p);
    layout(x, p.dtype, p.k, p.m, p.x_stride, p);
    layout(y, p.y_dtype, p.n, p.m, p.y_stride, p);
    choose(handle, p);
  }
  ~Plan() {
    const Functions& f = functions();
    for (MatrixLayout each : {w, x, y}) {
      if (each != nullptr) f.cublasLtMatrixLayoutDestroy(each);
    }
    if (desc != nullptr) f.cublasLtMatmulDescDestroy(desc);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void run(Handle handle, Buffer& workspace, void* stream, const DenseProduct& p) {
    const Functions& f = functions();
    if (p.bias != nullptr) {
      check_status(f.cublasLtMatmulDescSetAttribute(desc, kDescBiasPointer, &p.bias, sizeof p.bias),
                   p);
    }
    const float one = 1.0f;
    const float beta = p.accumulate ? 1.0f : 0.0f;
    check_status(
        f.cublasLtMatmul(handle, desc, &one, p.w, w, p.x, x, &beta, p.y, y, p.y, y, &algorithm,
                         workspace.data(), static_cast<size_t>(workspace.bytes()),
                         static_cast<cudaStream_t>(stream)),
        p);
  }

 private:
  void set(int attribute, int value, const DenseProduct& p) {
    check_status(functions().cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value),
                 p);
  }

  static void layout(MatrixLayout& to, DType dtype, int64_t rows, int64_t columns, int64_t stride,
                     const DenseProduct& p) {
    check_status(
        functions().cublasLtMatrixLayoutCreate(&to, type_of(dtype), static_cast<uint64_t>(rows),
                                               static_cast<uint64_t>(columns), stride),
        p);
  }

  void choose(Handle handle, const DenseProduct& p) {
    const Functions& f = functions();
    Preference preference = nullptr;
    check_status(f.cublasLtMatmulPreferenceCreate(&preference), p);
    const auto bytes = static_cast<uint64_t>(kWorkspaceBytes);
    f.cublasLtMatmulPreferenceSetAttribute(preference, kPreferenceWorkspaceBytes, &bytes,
                                           sizeof bytes);
    if (p.accumulate) {
      // Parts of K are not added up in y, which would round it once for each.
      const uint32_t schemes = kReductionInComputeType;
      f.cublasLtMatmulPreferenceSetAttribute(preference, kPreferenceReductionSchemes, &schemes,
                                             sizeof schemes);
    }
    const uint32_t alignment = alignment_of(p);
    for (const int each : kPreferenceAlignments) {
      if (alignment == kWholeRead) break;
      f.cublasLtMatmulPreferenceSetAttribute(preference, each, &alignment, sizeof alignment);
    }
    HeuristicResult result{};
    int found = 0;
    const int status =
        f.cublasLtMatmulAlgoGetHeuristic(handle, desc, w, x, y, y, preference, 1, &result, &found);
    f.cublasLtMatmulPreferenceDestroy(preference);
    check_status(status, p);
    check_status(found == 0 ? result.status : kSuccess, p);
    algorithm = result.algorithm;
  }

  MatmulDesc desc = nullptr;
  MatrixLayout w = nullptr;
  MatrixLayout x = nullptr;
  MatrixLayout y = nullptr;
  Algorithm algorithm{};
};

}  // namespace

struct Blas::Impl {
  explicit Impl(int device) : workspace(kWorkspaceBytes, {Device::Type::kCuda, device}) {}

  Handle handle = nullptr;
  Buffer workspace;
  std::map<Key, std::unique_ptr<Plan>> plans;
};

Blas::Blas(int device) : impl_(std::make_unique<Impl>(device)) {
  const DeviceScope scope(device);
  const int status = functions().cublasLtCreate(&impl_->handle);
  if (status != kSuccess) {
    fail(ErrorKind::kSystem, "cuda:{}: starting cuBLASLt: {}", device,
         functions().cublasLtGetStatusString(status));
  }
}

Blas::~Blas() {
  impl_->plans.clear();
  functions().cublasLtDestroy(impl_->handle);
}

void Blas::multiply(void* stream, const DenseProduct& product) {
  auto found = impl_->plans.find(key_of(product));
  if (found == impl_->plans.end()) {
    auto plan = std::make_unique<Plan>();
    plan->prepare(impl_->handle, product);
    if (impl_->plans.size() >= kMostPlans) impl_->plans.clear();  // cheaper than keeping order
    found = impl_->plans.emplace(key_of(product), std::move(plan)).first;
  }
  found->second->run(impl_->handle, impl_->workspace, stream, product);
}

}  // namespace spb::cuda
