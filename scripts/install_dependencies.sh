#!/usr/bin/env bash
# Installs what building needs on Debian 12, Ubuntu 22.04 or later, through apt; nothing that is
# already there.
#
#   scripts/install_dependencies.sh --runtime   to build and run spb
#   scripts/install_dependencies.sh --all       also tests, benchmarks, fuzzers, format check, HDF5
set -euo pipefail

mode=${1:---all}
packages=(build-essential cmake ninja-build pkg-config ccache libfmt-dev nlohmann-json3-dev
  libcli11-dev libpcre2-dev libutf8proc-dev python3 python3-pip)
case $mode in
  --runtime) ;;
  --all) packages+=(libgtest-dev libbenchmark-dev libhdf5-dev git) ;;
  *)
    echo "usage: scripts/install_dependencies.sh [--runtime | --all]" >&2
    exit 2
    ;;
esac

is_installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

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

if ! command -v apt-get >/dev/null; then
  echo "install: no apt-get here; going on with what is installed. Needed: ${packages[*]}"
  exit 0
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

updated=false
update_lists() {
  if [ "$updated" = true ]; then return; fi
  updated=true
  as_root apt-get update -qq >>"$log" 2>&1 || echo "install: apt-get update failed; trying on"
}

# A fresh machine has no lists yet, so they are fetched before the question.
is_available() {
  update_lists
  apt-cache show "$1" >/dev/null 2>&1
}

apt_install() {
  update_lists
  echo "install: $*"
  if ! as_root apt-get install -y -qq --no-install-recommends "$@" >>"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "install: could not install: $*" >&2
    return 1
  fi
}

missing=()
for package in "${packages[@]}"; do
  if ! is_installed "$package"; then missing+=("$package"); fi
done
if [ "${#missing[@]}" -gt 0 ]; then apt_install "${missing[@]}"; fi

# Installs a package unless this distribution does not have it.
install_optional() {
  if is_installed "$1"; then return; fi
  if is_available "$1"; then
    apt_install "$1"
  else
    echo "install: $1: not in this distribution, left out"
  fi
}

# Clang for the fuzzers; its runtime library has a package of its own in some releases only. The
# format check wants version 14, because other versions lay code out differently.
if [ "$mode" = --all ]; then
  install_optional clang
  if ! clang-format --version 2>/dev/null | grep -q 'version 14\.'; then
    install_optional clang-format-14
  fi
  if command -v clang >/dev/null; then
    install_optional "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
  fi
fi
echo "install: everything is there"
