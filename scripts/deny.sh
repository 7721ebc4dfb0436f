#!/usr/bin/env bash
# deny.sh: runs cargo deny on all dependencies. Advisories come from a database on the network; without it they are
# skipped with a message. Licences, bans and sources are always checked.
set -euo pipefail
version=0.20.2

cd "$(dirname "$(realpath "$0")")/.."
if ! cargo deny --version >/dev/null 2>&1; then
  echo "deny: installing cargo-deny $version with cargo, once (two minutes of processor time)" >&2
  cargo install --quiet --locked --debug --version "$version" cargo-deny
fi
cargo deny --workspace --locked check --hide-inclusion-graph bans licenses sources
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if cargo deny --workspace --locked check --hide-inclusion-graph advisories 2>"$log"; then
  echo "deny: no advisories" >&2
elif grep -q 'failed to fetch advisory database' "$log"; then
  echo "deny: NOT CHECKED: advisories, their database is out of reach" >&2
else
  cat "$log" >&2
  exit 1
fi
