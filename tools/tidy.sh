#!/usr/bin/env bash
# clang-tidy (.clang-tidy) over src/ and apps/, or over the files given. Needs build/cpu to be configured.
# Its findings change from version to version: with another than 14 this does nothing and says so.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=14
clang_tidy=
for candidate in clang-tidy-$wanted clang-tidy; do
  if command -v $candidate >/dev/null && $candidate --version | grep -q "version $wanted\."; then
    clang_tidy=$candidate
    break
  fi
done
if [ -z "$clang_tidy" ]; then
  echo "tidy: skipped, needs clang-tidy $wanted, found: $(clang-tidy --version 2>/dev/null | grep -o 'version.*' || echo none)"
  exit 0
fi
if [ ! -f build/cpu/compile_commands.json ]; then
  echo "tidy: configure first: cmake --preset cpu" >&2
  exit 1
fi

files=("$@")
if [ ${#files[@]} -eq 0 ]; then
  mapfile -t files < <(find src apps -name '*.cpp' ! -name '*_cuda.cpp' | sort)  # those are not in build/cpu
fi
tidy_one() {
  # The compile commands are g++'s: its own warning names must not become findings.
  local output status=0
  output=$("$1" -p build/cpu --quiet --extra-arg=-Wno-unknown-warning-option "$2" 2>&1) || status=$?
  if [ $status -ne 0 ]; then
    printf '%s\n' "$output"
  fi
  return $status
}
export -f tidy_one
if ! printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -c 'tidy_one "$0" "$1"' "$clang_tidy"; then
  echo "tidy: findings above" >&2
  exit 1
fi
echo "tidy: ${#files[@]} files are clean"
