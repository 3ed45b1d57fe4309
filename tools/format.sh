#!/usr/bin/env bash
# clang-format over all C++ files of the repository: rewrites them, or with --check lists what it would change and fails.
# Other versions than 14 format some lines differently: with those this does nothing and says so.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=14
clang_format=
for candidate in clang-format-$wanted clang-format; do
  if command -v $candidate >/dev/null && $candidate --version | grep -q "version $wanted\."; then
    clang_format=$candidate
    break
  fi
done
if [ -z "$clang_format" ]; then
  echo "format: skipped, needs clang-format $wanted, found: $(clang-format --version 2>/dev/null || echo none)"
  exit 0
fi

mapfile -t files < <(find src include apps tests bench examples -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null | sort)
if [ "${1:-}" = --check ]; then
  "$clang_format" --dry-run -Werror "${files[@]}"
  echo "format: ${#files[@]} files are formatted"
else
  "$clang_format" -i "${files[@]}"
fi
