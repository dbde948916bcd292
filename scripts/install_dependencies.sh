#!/usr/bin/env bash
# Installs what building needs on Debian 12, Ubuntu 22.04 or later, through apt; nothing that is
# already there.
#
#   scripts/install_dependencies.sh --runtime   to build and run spb
#   scripts/install_dependencies.sh --all       also tests, benchmarks, fuzzers, format check
set -euo pipefail

mode=${1:---all}
packages=(build-essential cmake ninja-build pkg-config ccache libfmt-dev nlohmann-json3-dev
  libcli11-dev libpcre2-dev libutf8proc-dev python3 python3-pip)
case $mode in
  --runtime) ;;
  --all) packages+=(libgtest-dev libbenchmark-dev git) ;;
  *)
    echo "usage: scripts/install_dependencies.sh [--runtime | --all]" >&2
    exit 2
    ;;
esac

is_installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
is_available() { apt-cache show "$1" >/dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    env DEBIAN_FRONTEND=noninteractive "$@"
  elif command -v sudo >/dev/null; then
    sudo env DEBIAN_FRONTEND=noninteractive "$@"
  else
    echo "install: neither root nor sudo; run as root: $*" >&2
    return 1
  fi
}

# Prints the packages of "$@" that are missing, without those this distribution does not have.
missing_of() {
  local package
  for package in "$@"; do
    if ! is_installed "$package"; then echo "$package"; fi
  done
}

if ! command -v apt-get >/dev/null; then
  echo "install: no apt-get here; going on with what is installed. Needed: ${packages[*]}"
  exit 0
fi

# Clang for the fuzzers; its runtime library has a package of its own in some releases only. The
# format check wants version 14, because other versions lay code out differently.
tools=()
if [ "$mode" = --all ]; then tools=(clang clang-format-14); fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
updated=false
apt_install() {
  if [ "$updated" = false ]; then
    as_root apt-get update -qq >>"$log" 2>&1 || echo "install: apt-get update failed; trying on"
    updated=true
  fi
  echo "install: $*"
  if ! as_root apt-get install -y -qq --no-install-recommends "$@" >>"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "install: could not install: $*" >&2
    return 1
  fi
}

mapfile -t missing < <(missing_of "${packages[@]}")
if [ "${#missing[@]}" -gt 0 ]; then apt_install "${missing[@]}"; fi

for tool in ${tools[@]+"${tools[@]}"}; do
  if is_installed "$tool"; then continue; fi
  if [ "$tool" = clang-format-14 ] && clang-format --version 2>/dev/null | grep -q 'version 14\.'; then
    continue
  fi
  if is_available "$tool"; then
    apt_install "$tool"
  else
    echo "install: $tool: not in this distribution, left out"
  fi
done

if [ "$mode" = --all ] && command -v clang >/dev/null; then
  version=$(clang -dumpversion | cut -d. -f1)
  runtime=libclang-rt-$version-dev
  if ! is_installed "$runtime" && is_available "$runtime"; then apt_install "$runtime"; fi
fi
echo "install: everything is there"
