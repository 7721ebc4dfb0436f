#!/usr/bin/env bash
# test.sh: runs all checks of the project, on Debian 12 or later as root; about 22 minutes on 2 cores the first time.
#
# It runs all steps even if one fails, and then lists the failed ones. It sets MICROVM_TEST_REQUIRE_TOOLS=1, with which
# a test fails instead of being skipped if an external program is missing.
set -uo pipefail

cd "$(dirname "$(realpath "$0")")/.." || exit 1
export MICROVM_TEST_REQUIRE_TOOLS=1 CARGO_TERM_COLOR=never
export MICROVM_FIXTURES=${MICROVM_FIXTURES:-$PWD/target/fixtures}

passed=0
failed=()
step() { # NAME COMMAND...
  local name=$1 started=$SECONDS
  shift
  printf '\n==> %s\n' "$name"
  if "$@"; then
    passed=$((passed + 1))
    printf '==> %s: passed in %s s\n' "$name" $((SECONDS - started))
  else
    failed+=("$name")
    printf '==> %s: FAILED\n' "$name"
  fi
}

beside() { # NAME COMMAND... -- NAME COMMAND...: runs the first step in the background while the second runs
  local name=$1 log started=$SECONDS code=0 background=()
  shift
  while [ "$1" != -- ]; do background+=("$1"); shift; done
  shift
  log=$(mktemp)
  "${background[@]}" >"$log" 2>&1 &
  local process=$!
  step "$@"
  wait "$process" || code=$?
  step "$name" show "$log" "$code"
  printf 'steps `%s` and `%s` ran side by side for %s s\n' "$name" "$1" $((SECONDS - started))
  rm -f "$log"
}
show() { cat "$1"; return "$2"; } # LOG CODE

check_scripts() {
  local scripts=()
  mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
  [ ${#scripts[@]} -gt 0 ] || mapfile -t scripts < <(find scripts fixtures benches .ci -name '*.sh' -o -path .ci/run)
  shellcheck -x "${scripts[@]}"
}

format() { cargo fmt --all --check && cargo fmt --manifest-path fuzz/Cargo.toml --check; }

documentation() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet; }

step 'setup' scripts/setup.sh
[ ${#failed[@]} -eq 0 ] || exit 1
step 'format' format
step 'spelling and prose' scripts/prose.sh
step 'scripts (shellcheck)' check_scripts
step 'lints (clippy)' cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
step 'documentation' documentation
step 'licences, bans and sources (cargo deny)' scripts/deny.sh
step 'fixtures' fixtures/closure/build.sh small
step 'tests' cargo test --workspace --locked --no-fail-fast
step 'manual' scripts/manual.sh
# Both use mostly one core.
beside 'fuzzing' fuzz/run.sh -- 'Nix' tests/nix/run.sh
step 'NixOS (with NIXPKGS=DIR)' tests/nixos/run.sh
step 'quickstart' scripts/quickstart.sh --test

printf '\n'
for name in "${failed[@]}"; do printf 'FAILED: %s\n' "$name"; done
printf 'steps: %s passed, %s failed\n' "$passed" "${#failed[@]}"
[ ${#failed[@]} -eq 0 ]
