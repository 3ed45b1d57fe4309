#!/usr/bin/env bash
# Builds every fuzz_* target (clang, libFuzzer, ASan+UBSan) and runs each for SECONDS (default 60) from its seeds in
# tests/fuzz/corpus/. New inputs stay in build/fuzz/corpus/; an input that crashes is kept in build/fuzz/crashes/.
#   tools/fuzz.sh [SECONDS [TARGET ...]]
# FUZZ_SEED (default 1) starts the random numbers: fixed, so that the same source passes again; change it for long runs.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
[ $# -gt 0 ] && shift
launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1  # another clone's results serve too
fi
cmake --preset fuzz --log-level=WARNING "${launcher[@]}"

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  mapfile -t targets < build/fuzz/fuzz_targets.txt
fi
if [ ${#targets[@]} -eq 0 ]; then
  echo "fuzz: no fuzz_* target is defined" >&2
  exit 1
fi
cmake --build build/fuzz --target "${targets[@]}"

run_one() {
  local target=$1 grown=build/fuzz/corpus/$1 seeds=tests/fuzz/corpus/$1 crashes=build/fuzz/crashes/$1
  mkdir -p "$grown" "$crashes"
  local corpora=("$grown")
  [ -d "$seeds" ] && corpora+=("$seeds")
  local dictionary=()
  [ -f "tests/fuzz/$target.dict" ] && dictionary=(-dict="tests/fuzz/$target.dict")
  if "build/fuzz/tests/fuzz/$target" -max_total_time="$seconds" -seed="$seed" -timeout=60 -rss_limit_mb=4096 -print_final_stats=1 \
    -artifact_prefix="$crashes/" "${dictionary[@]}" "${corpora[@]}" >"build/fuzz/$target.log" 2>&1; then
    echo "fuzz: $target ok, $(awk '/number_of_executed_units/ {print $2}' "build/fuzz/$target.log") inputs in $seconds s"
  else
    tail -n 60 "build/fuzz/$target.log"
    echo "fuzz: $target FAILED; inputs kept:"
    ls -1 "$crashes"/*
    return 1
  fi
}

# One fuzzer a core, so that a minute each is not a minute after the other.
export -f run_one
seed=${FUZZ_SEED:-1}
export seconds seed
printf '%s\0' "${targets[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -c 'run_one "$0"'
