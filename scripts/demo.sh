#!/usr/bin/env bash
# The main job on a fresh machine: builds spb, gets a real model, lets it answer a question.
#
#   scripts/demo.sh                                   with SmolLM2-135M-Instruct
#   SPB_MODEL=/path/to/model.gguf scripts/demo.sh     with a model of your own
set -euo pipefail
source "$(dirname "$0")/steps.sh"
cd "$root"

configure() {
  # A tree that scripts/test.sh configured keeps its tests; a new one does not need GoogleTest.
  if [ ! -f build/release/build.ninja ]; then
    cmake --preset release -DSPB_BUILD_TESTS=OFF
  fi
}

step demo_install "packages" scripts/install_dependencies.sh --runtime
step demo_configure "configure" configure
step demo_build "build" cmake --build build/release --target spb
spb=build/release/src/cli/spb

model=${SPB_MODEL:-}
if [ -z "$model" ]; then
  model=$(scripts/fetch_demo_model.sh)
  say "  ok     model ${model#"$root"/}"
fi

# Shows a command as a user would type it, then runs it.
demonstrate() {
  say
  say "\$ spb $*"
  "$spb" "$@"
}

demonstrate run "$model" --chat -p "Why is the sky blue?" -n 120 --temperature 0
demonstrate inspect "$model"
demonstrate bench "$model" --prefill 256 --depths 256 -n 32 -r 1
