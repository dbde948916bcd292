# Sourced by the other scripts: runs one step quietly and says how it went.
#
# The output of a step goes to build/logs/<name>.log and is shown only when the step fails.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
logs=$root/build/logs
mkdir -p "$logs"

jobs=$(nproc 2>/dev/null || echo 2)

say() { printf '%s\n' "$*"; }

# step NAME WHAT COMMAND...: returns the command's status.
step() {
  local name=$1 what=$2 log=$logs/$1.log start=$SECONDS status=0
  shift 2
  if [ -t 1 ]; then printf '  ...    %s\r' "$what"; fi
  "$@" >"$log" 2>&1 || status=$?
  if [ "$status" -eq 0 ]; then
    printf '  ok     %s (%d s)\n' "$what" $((SECONDS - start))
  else
    printf '  FAILED %s (%d s); the end of %s:\n' "$what" $((SECONDS - start)) "${log#"$root"/}"
    tail -n 40 "$log" | sed 's/^/    /'
  fi
  return "$status"
}
