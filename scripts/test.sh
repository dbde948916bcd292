#!/usr/bin/env bash
# All checks on a fresh machine, set-up included: packages, release build and tests, format,
# layers, sizes, instruction sets, the tests again under ASan and UBSan, each fuzzer for a minute,
# and a build with CUDA where nvcc is.
#
#   scripts/test.sh            everything
#   scripts/test.sh --quick    without sanitizers and fuzzers
#   scripts/test.sh --no-install ...   leaves the packages of this machine alone
#
# Exit status 0 when everything passed. Logs are in build/logs/.
set -uo pipefail
source "$(dirname "$0")/steps.sh"
cd "$root" || exit 1

quick=false
install=true
for argument in "$@"; do
  case $argument in
    --quick) quick=true ;;
    --no-install) install=false ;;
    *)
      echo "usage: scripts/test.sh [--quick] [--no-install]" >&2
      exit 2
      ;;
  esac
done

fuzzers=(gguf_fuzz safetensors_fuzz torch_zip_fuzz tokenizer_json_fuzz spike_events_fuzz)
fuzz_seconds=60
passed=0
failed=0
skipped=0

# A check is a step that counts as one test.
check() {
  if step "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}

skip() {
  say "  skip   $1"
  skipped=$((skipped + 1))
}

# Adds what ctest reported in a log to the counts.
count_tests() {
  local log=$logs/$1.log total bad idle
  total=$(sed -n 's/.*tests failed out of \([0-9]*\).*/\1/p' "$log" | tail -n 1)
  bad=$(sed -n 's/.*passed, \([0-9]*\) tests failed out of.*/\1/p' "$log" | tail -n 1)
  idle=$(grep -c '\*\*\*Skipped' "$log")
  if [ -z "$total" ]; then
    failed=$((failed + 1))
    return
  fi
  say "         $total tests, $bad failed, $idle skipped"
  passed=$((passed + total - bad - idle))
  failed=$((failed + bad))
  skipped=$((skipped + idle))
}

# run_tests PRESET WHAT [OPTION...]: configures, builds and runs the tests of a preset.
run_tests() {
  local preset=$1
  if ! step "${preset}_configure" "configure ($2)" cmake --preset "$preset" "${@:3}" ||
    ! step "${preset}_build" "build ($2)" cmake --build "build/$preset"; then
    failed=$((failed + 1))
    return
  fi
  step "${preset}_tests" "tests ($2)" "${no_aslr[@]}" ctest --test-dir "build/$preset" -j "$jobs" \
    --output-on-failure
  count_tests "${preset}_tests"
}

list_sources() {
  git ls-files -z --cached --others --exclude-standard '*.h' '*.cpp' 2>/dev/null ||
    find src tests bench examples \( -name '*.h' -o -name '*.cpp' \) -print0
}

check_format() { list_sources | xargs -0 "$clang_format" --dry-run -Werror; }

find_clang_format() {
  local candidate
  for candidate in clang-format-14 clang-format; do
    if "$candidate" --version 2>/dev/null | grep -q 'version 14\.'; then
      echo "$candidate"
      return
    fi
  done
}

# The library installs, and a program elsewhere finds it, links it and runs.
check_install() {
  local prefix=$root/build/install
  rm -rf "$prefix" build/example
  cmake --install build/release --prefix "$prefix" &&
    cmake -S examples/stream_text -B build/example -G Ninja -DCMAKE_PREFIX_PATH="$prefix" &&
    cmake --build build/example || return 1
  if [ -n "$SPB_TEST_MODEL" ]; then
    build/example/stream_text "$SPB_TEST_MODEL" "Why is the sky blue?"
  fi
}

# The skeleton of tools/new_operator builds and passes its own test, in a tree with core alone.
check_skeleton() {
  local tree=build/skeleton
  rm -rf "$tree" && mkdir -p "$tree/src/ops" || return 1
  cp -r cmake .clang-format "$tree" && cp -r src/core "$tree/src" || return 1
  grep spb_add_folder src/ops/CMakeLists.txt >"$tree/src/ops/CMakeLists.txt"
  {
    sed '/^foreach/,$d' CMakeLists.txt
    echo 'add_subdirectory(src/core)'
    echo 'add_subdirectory(src/ops)'
  } >"$tree/CMakeLists.txt"
  tools/new_operator layer_swap "$tree" &&
    cmake -S "$tree" -B "$tree/build" -G Ninja &&
    cmake --build "$tree/build" --target ops_layer_swap_test &&
    ctest --test-dir "$tree/build" -R ops_layer_swap --output-on-failure --no-tests=error
}

# Runs one fuzzer on its corpus, which grows in build/corpus/ from one call to the next, and on the
# well-formed files of the tests.
fuzz() {
  local name=$1 corpus=build/corpus/$1 seeds=tests/fixtures/io
  if [ "$name" = tokenizer_json_fuzz ]; then seeds=tests/fixtures/text/smollm2; fi
  if [ "$name" = spike_events_fuzz ]; then seeds=tests/fixtures/view; fi
  mkdir -p "$corpus"
  "${no_aslr[@]}" "$(find build/fuzz -type f -name "$name" -perm -u+x)" "$corpus" "$seeds" \
    -max_total_time=$fuzz_seconds -timeout=20 -rss_limit_mb=3000 -print_final_stats=1 \
    -artifact_prefix="$logs/$name-"
}

# CUDA code compiles and links; running it needs a GPU (scripts/gpu_check.sh).
check_cuda_build() {
  if ! command -v nvcc >/dev/null; then
    skip "CUDA: needs nvcc"
    return
  fi
  check cuda_configure "configure (CUDA)" cmake --preset cuda -DSPB_BUILD_BENCH=OFF
  check cuda_build "build (CUDA)" cmake --build build/cuda --target spb ops_softmax_attention_test
}

run_fuzzers() {
  if ! command -v clang++ >/dev/null; then
    skip "fuzzers: need clang++"
    return
  fi
  if ! step fuzz_configure "configure (fuzzers)" cmake --preset fuzz ||
    ! step fuzz_build "build (fuzzers)" cmake --build build/fuzz --target "${fuzzers[@]}"; then
    failed=$((failed + 1))
    return
  fi
  local i
  for ((i = 0; i < ${#fuzzers[@]}; i += 2)); do # the last pair may be one
    fuzz_pair "${fuzzers[@]:i:2}"
  done
}

# Fuzzers use one thread each: two at a time keep two processors busy.
fuzz_pair() {
  local name pids=()
  for name in "$@"; do
    fuzz "$name" >"$logs/$name.log" 2>&1 &
    pids+=($!)
  done
  for name in "$@"; do
    check "${name}_result" "$name, $fuzz_seconds s" report_fuzzer "${pids[0]}" "$name"
    pids=("${pids[@]:1}")
  done
}

report_fuzzer() {
  local status=0
  wait "$1" || status=$?
  tail -n 40 "$logs/$2.log"
  return "$status"
}

if [ "$install" = true ]; then
  step install "packages" scripts/install_dependencies.sh --all || exit 1
fi

# Sanitizers of older compilers cannot place their shadow memory under the strong address
# randomization of newer kernels; without permission to switch it off, try as it is.
no_aslr=(env)
if setarch "$(uname -m)" -R true 2>/dev/null; then no_aslr=(setarch "$(uname -m)" -R); fi

if [ -n "${SPB_TEST_MODEL:-}" ]; then
  SPB_TEST_MODEL=$(realpath "$SPB_TEST_MODEL") # ctest runs elsewhere
  say "  ok     test model $SPB_TEST_MODEL"
elif SPB_TEST_MODEL=$(scripts/fetch_demo_model.sh 2>"$logs/fetch.log"); then
  say "  ok     test model ${SPB_TEST_MODEL#"$root"/}"
else
  skip "tests on a real model: $(grep -m 1 'could not\|expected' "$logs/fetch.log")"
  SPB_TEST_MODEL=
fi
export SPB_TEST_MODEL

for tool in check_includes check_sizes check_isa new_operator; do
  check "${tool}_self_test" "tools/$tool --self-test" "tools/$tool" --self-test
done
check includes "layers (tools/check_includes)" tools/check_includes
check sizes "budgets (tools/check_sizes)" tools/check_sizes
clang_format=$(find_clang_format)
if [ -n "$clang_format" ]; then
  check format "format" check_format
else
  skip "format: needs clang-format 14"
fi

run_tests release "release"
check isa "instruction sets (tools/check_isa)" tools/check_isa build/release
check install "install, find_package and example" check_install

if [ "$quick" = false ]; then
  check skeleton "new operator (tools/new_operator)" check_skeleton
  export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1}
  export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
  # The export of spike events as NIR is built and tested here, where the library is there.
  hdf5=OFF
  if pkg-config --exists hdf5; then hdf5=ON; else skip "NIR export: needs libhdf5-dev"; fi
  # The real model would take minutes here and reach no line that small ones do not.
  SPB_TEST_MODEL='' run_tests asan "ASan, UBSan" "-DSPB_WITH_HDF5=$hdf5"
  run_fuzzers
  check_cuda_build
fi

say
say "$passed passed, $failed failed, $skipped skipped in $((SECONDS / 60)) min $((SECONDS % 60)) s"
[ "$failed" -eq 0 ]
