#!/usr/bin/env bash
# Checks the CUDA backend: every test and bench of it, in under ten minutes.
#
#   scripts/gpu_check.sh [OPTION...]   builds and runs, on a machine with a GPU and the packages
#   scripts/gpu_check.sh --pack        builds here (no GPU needed), and packs what a GPU machine
#                                      needs to run it into build/gpu/: programs, shared libraries,
#                                      the files of the tests, the model that SPB_TEST_MODEL names
#   build/gpu/run [OPTION...]          runs that on a machine without packages or network
#
# Options of a run:
#   --quick              leaves out the benches
#   --benches            leaves out the tests
#   --sanitize           runs the operator tests under compute-sanitizer (memcheck, racecheck)
#                        instead of everything else; as many tests at a time as there are cores,
#                        each for at most SPB_SANITIZER_SECONDS (60); SPB_SANITIZER_TESTS, a filter
#                        of GoogleTest, and SPB_SANITIZER_TOOLS choose among them
#   --write-table FILE   writes the table of targets and operators between the marks of FILE, which
#                        is docs/performance.md or a copy of it
#
# CUDAARCHS chooses the generations that are built, as for CMake: 90a-real for Hopper alone takes
# half the time. The running machine needs the NVIDIA driver, cuBLASLt 13 and, for tables, python3.
# SPB_CUBLAS names the folder of cuBLASLt when the loader does not find it.
set -uo pipefail
source "$(dirname "$0")/steps.sh"
cd "$root" || exit 1

pack=$root/build/gpu

# The test executables that ask for a CUDA device, as cmake/spb.cmake names them: one for each folder
# or operator, in tests/ one for each file. Their tests for a device have Cuda in their names.
cuda_tests() {
  local file folder
  grep -rlE 'OnCuda|unusable_reason\(' src tests --include='*_test.cpp' | sort | while read -r file; do
    folder=$(dirname "$file")
    case $folder in
      tests) basename "$file" .cpp ;;
      src/*/*) echo "${folder#src/}" | sed 's|/|_|g; s|$|_test|' ;;
      *) echo "${folder#src/}_test" ;;
    esac
  done | sort -u
}

# The benches of the card: a cuda_bench.cpp each.
cuda_benches() {
  find src -name cuda_bench.cpp | sort | sed 's|^src/||; s|/cuda_bench.cpp$||; s|/|_|g; s|$|_cuda_bench|'
}

build() {
  # shellcheck disable=SC2046  # names of targets
  cmake --preset cuda -DSPB_BUILD_BENCH=OFF ${CUDAARCHS:+"-DCMAKE_CUDA_ARCHITECTURES=$CUDAARCHS"} &&
    cmake --build build/cuda --target spb $(cuda_tests) $(cuda_benches)
}

# A program, stripped, and the shared libraries that a bare machine lacks.
add_program() {
  strip -o "$pack/$(basename "$1")" "$1"
  ldd "$1" | awk '$3 ~ /^\// && $1 !~ /^(libc|libm|libstdc\+\+|libgcc_s|libdl|libpthread)\./ {print $3}' |
    xargs -r cp -L -u -t "$pack/lib"
}

make_pack() {
  rm -rf "$pack" && mkdir -p "$pack/lib" "$pack/tests" || return 1
  local name
  for name in spb $(cuda_tests) $(cuda_benches); do
    add_program "$(find build/cuda -type f -executable -name "$name")" || return 1
  done
  cuda_tests >"$pack/tests.txt"
  cuda_benches >"$pack/benches.txt"
  cp scripts/gpu_check_run.sh "$pack/run"
  cp scripts/gpu_table.py "$pack/"
  cp -r tests/golden tests/fixtures "$pack/tests/"
  git rev-parse --short HEAD >"$pack/commit" 2>/dev/null
  if [ -n "${SPB_TEST_MODEL:-}" ]; then cp "$SPB_TEST_MODEL" "$pack/model.gguf"; fi
  du -sh "$pack"
}

step gpu_build "build (CUDA)" build && step gpu_pack "pack" make_pack || exit 1
if [ "${1:-}" = --pack ]; then
  say "  carry ${pack#"$root"/} to a GPU machine and start its run"
else
  exec "$pack/run" "$@"
fi
