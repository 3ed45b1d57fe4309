#!/usr/bin/env bash
# Installs what a build needs on Debian 12 or Ubuntu 24.04 and newer, and nothing that is already there.
#   tools/setup.sh run    compiler and libraries of the command (./demo)
#   tools/setup.sh test   and GoogleTest (./test --quick)
#   tools/setup.sh full   and clang with its sanitizers, clang-format, clang-tidy (./test)
# Works as root or with sudo, asks nothing.
set -euo pipefail

level=${1:-run}
packages=(g++ cmake ninja-build pkg-config
  libfmt-dev nlohmann-json3-dev libcli11-dev libsimdjson-dev libutf8proc-dev
  libjpeg-dev libpng-dev libwebp-dev libgif-dev
  libavformat-dev libavcodec-dev libswscale-dev libavutil-dev)
case $level in
  run) ;;
  test) packages+=(libgtest-dev libgmock-dev zlib1g-dev) ;;
  full) packages+=(libgtest-dev libgmock-dev zlib1g-dev clang clang-format clang-tidy) ;;
  *) echo "usage: tools/setup.sh run|test|full" >&2; exit 2 ;;
esac

if ! command -v apt-get >/dev/null; then
  echo "setup: no apt-get on this machine; these packages (by their Debian names) must be there: ${packages[*]}"
  exit 0
fi

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
find_missing() {
  missing=()
  for package in "$@"; do installed "$package" || missing+=("$package"); done
}

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  as_root=(sudo)
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"; }

updated=no
install() {
  find_missing "$@"
  if [ ${#missing[@]} -eq 0 ]; then
    return
  fi
  echo "setup: installing ${missing[*]}"
  if [ ${#as_root[@]} -ne 0 ] && ! command -v sudo >/dev/null; then
    echo "setup: needs root or sudo. As root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  if [ $updated = no ]; then
    # A broken third-party source must not stop us: the install below is what counts.
    apt update -qq || echo "setup: apt-get update failed; going on with the package lists at hand" >&2
    updated=yes
  fi
  apt install -y -qq --no-install-recommends "${missing[@]}" </dev/null
}

install "${packages[@]}"
if [ "$level" = full ]; then
  # The sanitizer and fuzzer runtimes are a package of their own, named by clang's version.
  clang_version=$(clang -dumpversion | cut -d. -f1)
  install "libclang-rt-$clang_version-dev"
fi
echo "setup: everything needed is installed"
