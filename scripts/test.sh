#!/usr/bin/env bash
# test.sh: runs all checks of the project, on Debian 12 or later as root; about 35 minutes on 2 cores the first time.
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

background=()
start_beside() { # NAME COMMAND...: starts a step in the background; end_beside waits for it and shows its output
  background=("$1" "$(mktemp)" "$SECONDS")
  shift
  "$@" >"${background[1]}" 2>&1 &
  background+=($!)
}
end_beside() {
  local name=${background[0]} log=${background[1]} started=${background[2]} code=0
  wait "${background[3]}" || code=$?
  step "$name" show "$log" "$code"
  printf 'step `%s` ran beside the steps before it, for %s s\n' "$name" $((SECONDS - started))
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
# Most of it is one emulated guest after another, which occupies one core.
start_beside 'Nix' tests/nix/run.sh
step 'manual' scripts/manual.sh
step 'fuzzing' fuzz/run.sh
step 'cluster' tests/cluster/run.sh
step 'quickstart' scripts/quickstart.sh --test
end_beside
step 'NixOS (with NIXPKGS=DIR)' tests/nixos/run.sh

printf '\n'
for name in "${failed[@]}"; do printf 'FAILED: %s\n' "$name"; done
printf 'steps: %s passed, %s failed\n' "$passed" "${#failed[@]}"
[ ${#failed[@]} -eq 0 ]
