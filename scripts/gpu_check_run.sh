#!/usr/bin/env bash
# Runs the packed checks of the CUDA backend; scripts/gpu_check.sh puts this beside them.
#
# Exit status 0 when every test passed. A test that finds no device fails here: skipping would hide
# that nothing was checked.
here=$(cd "$(dirname "$0")" && pwd)
export LD_LIBRARY_PATH=$here/lib:${SPB_CUBLAS:-/usr/local/cuda/lib64}:${LD_LIBRARY_PATH:-}
failed=0
quick=false
[ "${1:-}" = --quick ] && quick=true

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1
for program in "$here"/ops_*_test; do
  name=$(basename "$program")
  log=$("$program" --gtest_filter='*Cuda*' 2>&1)
  status=$?
  ran=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) tests*\..*/\1/p' <<<"$log")
  if [ $status -ne 0 ] || [ -z "$ran" ] || grep -q '\[  SKIPPED \]' <<<"$log"; then
    echo "FAILED $name"
    grep -vE '^\[ +(OK|RUN) ' <<<"$log" | tail -n 25
    failed=$((failed + 1))
  else
    echo "ok     $name: $ran tests"
  fi
done
if ! $quick; then
  [ -x "$here/ops_bench" ] && { "$here/ops_bench" || failed=$((failed + 1)); }
fi
echo "$failed failed"
exit $((failed > 0))
