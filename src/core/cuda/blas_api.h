// The part of cuBLASLt's binary interface that Blas calls, found by name at run time.
//
// Declared here rather than included: the header comes with a package of 440 MB, and linking would
// make the library a condition for starting the program. Stable within the library's major version.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace spb::cuda::blas_api {

using Handle = void*;
using MatmulDesc = void*;
using MatrixLayout = void*;
using Preference = void*;

inline constexpr int kSuccess = 0;
inline constexpr int kComputeF32 = 68;
inline constexpr int kTransposed = 1;
inline constexpr int kEpilogueBias = 4;

// Attributes of a MatmulDesc and of a Preference.
inline constexpr int kDescTransposeA = 3;
inline constexpr int kDescEpilogue = 7;
inline constexpr int kDescBiasPointer = 8;
inline constexpr int kDescBiasType = 26;
inline constexpr int kPreferenceWorkspaceBytes = 1;
inline constexpr int kPreferenceReductionSchemes = 3;
inline constexpr int kPreferenceAlignments[] = {5, 6, 7, 8};  // of a, b, c and d, in bytes

// How parts of a sum are added up where a product is split along it: in f32, in scratch memory.
inline constexpr uint32_t kReductionInComputeType = 2;

struct Algorithm {
  uint64_t data[8];
};

struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

struct Functions {
  int (*cublasLtCreate)(Handle*);
  int (*cublasLtDestroy)(Handle);
  const char* (*cublasLtGetStatusString)(int);
  int (*cublasLtMatmulDescCreate)(MatmulDesc*, int compute, int scale_type);
  int (*cublasLtMatmulDescDestroy)(MatmulDesc);
  int (*cublasLtMatmulDescSetAttribute)(MatmulDesc, int, const void*, size_t);
  int (*cublasLtMatrixLayoutCreate)(MatrixLayout*, int type, uint64_t rows, uint64_t columns,
                                    int64_t leading);
  int (*cublasLtMatrixLayoutDestroy)(MatrixLayout);
  int (*cublasLtMatmulPreferenceCreate)(Preference*);
  int (*cublasLtMatmulPreferenceDestroy)(Preference);
  int (*cublasLtMatmulPreferenceSetAttribute)(Preference, int, const void*, size_t);
  int (*cublasLtMatmulAlgoGetHeuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b,
                                        MatrixLayout c, MatrixLayout d, Preference, int wanted,
                                        HeuristicResult*, int* found);
  int (*cublasLtMatmul)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout,
                        const void* b, MatrixLayout, const void* beta, const void* c, MatrixLayout,
                        void* d, MatrixLayout, const Algorithm*, void* workspace, size_t,
                        cudaStream_t);
};

}  // namespace spb::cuda::blas_api
