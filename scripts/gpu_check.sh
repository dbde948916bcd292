#!/usr/bin/env bash
# Checks the CUDA backend: every test and bench of it, in under ten minutes of GPU time.
#
#   scripts/gpu_check.sh            builds and runs, on a machine with a GPU and the packages
#   scripts/gpu_check.sh --pack     builds here (no GPU needed), and packs what a GPU machine needs
#                                   to run it into build/gpu/: programs, shared libraries, a model
#   build/gpu/run [--quick]         runs that on a machine without packages or network; --quick
#                                   leaves out the benches
#
# The running machine needs the NVIDIA driver and cuBLASLt 13. SPB_CUBLAS names its folder when the
# loader does not find it.
set -uo pipefail
source "$(dirname "$0")/steps.sh"
cd "$root" || exit 1

pack=$root/build/gpu
operators=(rms_norm swiglu rope embedding matmul softmax_attention gated_linear_attention)

build() {
  local targets=(spb)
  for operator in "${operators[@]}"; do targets+=("ops_${operator}_test"); done
  targets+=(ops_bench)
  cmake --preset cuda && cmake --build build/cuda --target "${targets[@]}"
}

# A program, stripped, and the shared libraries that a bare machine lacks.
add_program() {
  strip -o "$pack/$(basename "$1")" "$1"
  ldd "$1" | awk '$3 ~ /^\// && $1 !~ /^(libc|libm|libstdc\+\+|libgcc_s|libdl|libpthread)\./ {print $3}' |
    xargs -r cp -L -u -t "$pack/lib"
}

make_pack() {
  rm -rf "$pack" && mkdir -p "$pack/lib" || return 1
  find build/cuda -type f -executable \( -name spb -o -name 'ops_*_test' -o -name ops_bench \) |
    while read -r program; do add_program "$program"; done
  cp scripts/gpu_check_run.sh "$pack/run"
  if [ -n "${SPB_TEST_MODEL:-}" ]; then cp "$SPB_TEST_MODEL" "$pack/model.gguf"; fi
  du -sh "$pack"
}

step gpu_build "build (CUDA)" build && step gpu_pack "pack" make_pack || exit 1
if [ "${1:-}" = --pack ]; then
  say "  carry ${pack#"$root"/} to a GPU machine and start its run"
else
  exec "$pack/run" "$@"
fi
