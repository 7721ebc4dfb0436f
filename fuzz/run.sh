#!/usr/bin/env bash
# run.sh: compiles every fuzz target and runs each for a short time. Fails if a target finds something.
#
# usage: fuzz/run.sh [SECONDS [TARGET...]]      (default: 20,000 inputs or 2 seconds each, all targets)
#
# It uses the stable compiler: the coverage counters of libFuzzer are a pass of LLVM, which needs no sanitizer. Findings
# are stored in target/fuzz/artifacts/TARGET; `target/fuzz/HOST/release/TARGET FILE` reproduces one.
set -euo pipefail

cd "$(dirname "$(realpath "$0")")/.."
limits=(-runs=20000 -max_total_time=1)
if [ $# -gt 0 ]; then
  limits=(-max_total_time="$1")
  shift
fi
# The program that the tests build; it is used to make the seeds of most targets.
builds=${CARGO_TARGET_DIR:-target}
output=$builds/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
mapfile -t targets < <(find fuzz/fuzz_targets -name "*.rs" -printf "%f\n" | sed "s/\.rs$//" | sort)
[ $# -eq 0 ] || targets=("$@")

cargo build --package imagebuilder --bin microvm-image --locked --quiet
flags=(-Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
# With --target, the flags apply only to the targets, not to build scripts.
RUSTFLAGS=${flags[*]} cargo build --manifest-path fuzz/Cargo.toml --target-dir "$output" --target "$host" --release \
  --locked --quiet

# Many targets write their input to files, which is a hundred times faster in memory.
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fuzz/seeds.sh "$builds/debug/microvm-image" "$scratch/corpus"
mkdir "$scratch/tmp"
failed=()
for target in "${targets[@]}"; do
  mkdir -p "$output/artifacts/$target"
  if TMPDIR=$scratch/tmp "$output/$host/release/$target" "$scratch/corpus/$target" "${limits[@]}" \
    -rss_limit_mb=1024 -timeout=20 -len_control=0 -artifact_prefix="$output/artifacts/$target/" \
    >"$scratch/log" 2>&1; then
    printf '%-20s %s\n' "$target" "$(tail -n 1 "$scratch/log")"
  else
    failed+=("$target")
    tail -n 60 "$scratch/log"
  fi
  rm -rf "${scratch:?}/tmp"/*
done
for target in "${failed[@]}"; do printf 'FAILED: %s\n' "$target"; done
[ ${#failed[@]} -eq 0 ]
