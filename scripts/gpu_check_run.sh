#!/usr/bin/env bash
# Runs the packed checks of the CUDA backend; scripts/gpu_check.sh puts this beside them, and says
# what the options do.
#
# Exit status 0 when every test passed. A test that finds no device fails here: skipping would hide
# that nothing was checked.
set -uo pipefail
start_folder=$PWD
here=$(cd "$(dirname "$0")" && pwd)
export LD_LIBRARY_PATH=$here/lib:${SPB_CUBLAS:-/usr/local/cuda/lib64}:${LD_LIBRARY_PATH:-}
export SPB_TEST_ROOT=$here
failed=0
tests=true
benches=true
sanitize=false
table=

while [ $# -gt 0 ]; do
  case $1 in
    --quick) benches=false ;;
    --benches) tests=false ;;
    --sanitize) sanitize=true ;;
    --write-table)
      table=$(cd "$start_folder" && realpath "${2:?--write-table: expected a file}")
      shift
      ;;
    *)
      echo "usage: run [--quick] [--benches] [--sanitize] [--write-table FILE]" >&2
      exit 2
      ;;
  esac
  shift
done

if [ -z "${SPB_TEST_MODEL:-}" ] && [ -f "$here/model.gguf" ]; then
  export SPB_TEST_MODEL=$here/model.gguf
fi

# report NAME STATUS LOG: one line, and the end of the log of what failed.
report() {
  local ran
  ran=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) tests*\..*/\1/p' <<<"$3")
  if [ "$2" -ne 0 ] || [ -z "$ran" ] || grep -q '\[  SKIPPED \]' <<<"$3"; then
    echo "FAILED $1"
    grep -vE '^\[ +(OK|RUN) |^\[-+\]' <<<"$3" | tail -n 25
    failed=$((failed + 1))
  else
    echo "ok     $1: $ran tests"
  fi
}

run_tests() {
  local name log status
  while read -r name; do
    if [[ $name = smollm2* ]] && [ -z "${SPB_TEST_MODEL:-}" ]; then
      echo "skip   $name: SPB_TEST_MODEL names no model"
      continue
    fi
    log=$(timeout 200 "$here/$name" --gtest_filter='*Cuda*' 2>&1)
    status=$?
    report "$name" $status "$log"
  done <"$here/tests.txt"
}

# The CUDA tests of a program, one name a line.
list_tests() {
  "$here/$1" --gtest_list_tests --gtest_filter="${SPB_SANITIZER_TESTS:-*Cuda*}" |
    awk '/^[^ ]/ { suite = $1 } /^ / { print suite $1 }' | grep Cuda
}

# sanitize TOOL NAME TEST: one tool on one test; its verdict and seconds go to sanitizer.txt, and what
# it found to the terminal.
sanitize() {
  local log status verdict=clean start=$SECONDS
  log=$(CUDA_VISIBLE_DEVICES=$((BASHPID % cards)) timeout "$sanitizer_seconds" \
    compute-sanitizer --tool "$1" --error-exitcode 9 "$here/$2" --gtest_filter="$3" 2>&1)
  status=$?
  if grep -qE '^========= (Invalid|Error|.*hazard)' <<<"${log//0 hazards displayed/}"; then
    verdict=FAILED
  elif [ $status -eq 124 ]; then
    verdict=cut
  elif [ $status -ne 0 ]; then
    verdict=FAILED
  fi
  echo "$1 $2 $verdict $3 $((SECONDS - start))" >>"$here/sanitizer.txt"
  if [ "$verdict" = FAILED ]; then
    # What the test says too: it may fail by itself, because it was slow or short of memory here.
    printf 'FAILED %s %s %s\n%s\n%s\n' "$1" "$2" "$3" \
      "$(grep -E '^=========' <<<"$log" | head -n 25)" \
      "$(grep -vE '^\[ +(OK|RUN) |^\[-+\]|^=========' <<<"$log" | tail -n 15)"
  fi
}

# Racecheck looks at shared memory, memcheck at all of it. Both slow kernels down a hundred times
# and more, so that tests of large shapes are cut off. Most of the time is the host's waiting:
# several tests share a card.
run_sanitizer() {
  local name tool
  cards=$(nvidia-smi --list-gpus | wc -l)
  export here cards
  export sanitizer_seconds=${SPB_SANITIZER_SECONDS:-60}
  export -f sanitize
  rm -f "$here/sanitizer.txt"
  grep -E '^(core|ops|spike)_' "$here/tests.txt" | grep -v _models_ | while read -r name; do
    for tool in ${SPB_SANITIZER_TOOLS:-memcheck racecheck}; do
      list_tests "$name" | sed "s/^/$tool $name /"
    done
  done | xargs -P "$(nproc)" -n 3 bash -c 'sanitize "$@"' sanitize
  awk '{ key = $1 " " $2; count[key " " $3]++; keys[key] = 1; if ($3 == "cut") late = late "\n  " $0 }
    END {
      for (key in keys) printf "%s: %d clean, %d cut off, %d failed\n", key,
        count[key " clean"], count[key " cut"], count[key " FAILED"]
      if (late != "") print "cut off, without a finding until then:" late
    }' "$here/sanitizer.txt"
  failed=$(grep -c ' FAILED ' "$here/sanitizer.txt")
}

# bench NAME ARGUMENT...: of the 7B preset with random weights; JSON to results/NAME.json.
bench() {
  local name=$1
  shift
  timeout 250 "$here/spb" bench --preset spikingbrain-7b --random --device cuda --json "$@" \
    >"$here/results/$name.json" || failed=$((failed + 1))
}

run_benches() {
  mkdir -p "$here/results"
  local name
  while read -r name; do
    timeout 150 "$here/$name" --tsv "$here/results/$name.tsv" || failed=$((failed + 1))
  done <"$here/benches.txt"
  # What comes first in a run is slower: shorter prompts before those that count.
  bench prompts --chunk 16384 --prefill 32k,128k --depths 4k,256k,1M -n 64 -r 3
  bench million --chunk 16384 --prefill 1M --depths 0 -n 4 -r 1
  bench longest --chunk 16384 --prefill 4M --depths 0 -n 4 -r 1
  bench spikes --w8aspike --chunk 16384 --prefill 32k,128k --depths 4k -n 32 -r 3
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1
if $sanitize; then
  run_sanitizer
else
  if $tests; then run_tests; fi
  if $benches; then run_benches; fi
  if $benches && [ -n "$table" ]; then
    python3 "$here/gpu_table.py" "$here/results" "$table" || failed=$((failed + 1))
  fi
fi
echo "$failed failed, $SECONDS s"
exit $((failed > 0))
